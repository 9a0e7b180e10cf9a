"""The accounts of clients: a client that invents names has one account, and one that keeps its name has its own."""

from __future__ import annotations

from collections import Counter

from edge_agent.requests.accounts import IDLE_S, MAX_NEW, NEW, OPEN_OWN, Accounts


def test_a_name_gets_its_own_account_when_it_comes_again() -> None:
    accounts = Accounts()
    assert [accounts.of("cam-1", 0.0), accounts.of("cam-1", 0.1), accounts.of("cam-1", 0.2)] == [NEW, "cam-1", "cam-1"]
    assert accounts.of("cam-2", 0.3) == NEW


def test_clients_without_a_name_share_their_own_account() -> None:
    accounts = Accounts()
    assert {accounts.of("", number) for number in range(3)} == {""}


def test_whoever_invents_a_name_for_each_request_has_one_account_and_others_keep_theirs() -> None:
    accounts, seen = Accounts(), Counter[str]()
    accounts.of("cam-1", 0.0)
    for number in range(3 * MAX_NEW):
        seen[accounts.of(f"invented-{number}", number / 500)] += 1
        if number % 500 == 0:
            assert accounts.of("cam-1", number / 500) == "cam-1"
    assert seen == {NEW: 3 * MAX_NEW}
    assert len(accounts) == 1


def test_names_that_come_again_are_bounded_and_none_takes_the_account_of_one_that_is_in_use() -> None:
    accounts = Accounts()
    for _ in range(2):
        accounts.of("cam-1", 0.0)
    for _ in range(3):
        for number in range(4 * OPEN_OWN):
            accounts.of(f"invented-{number}", 1.0)
    assert len(accounts) == OPEN_OWN
    assert accounts.of("cam-1", IDLE_S - 1) == "cam-1"
    assert accounts.of("cam-2", IDLE_S) == NEW


def test_an_account_that_was_idle_for_long_makes_room() -> None:
    accounts = Accounts()
    for number in range(OPEN_OWN):
        for _ in range(2):
            accounts.of(f"old-{number}", 0.0)
    assert [accounts.of("cam-1", IDLE_S + 1) for _ in range(2)] == [NEW, "cam-1"]
    assert len(accounts) == OPEN_OWN
