"""Client ids: connections that are not the same never share one, and every broker takes them."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from broker.client import Client
from broker.protocol.client_ids import client_id
from broker.protocol.specs import ID_PATTERN, SITE_PATTERN
from broker.transport.connect import client_id_for
from broker.transport.connection import Connection
from broker.transport.memory import MemoryBroker

WORDS = st.sampled_from(["a", "b", "data", "control", "devices", "clients", "orchestrators", "s2m3", "gw-a-data"])
DEVICE = WORDS | st.from_regex(re.compile(ID_PATTERN, re.ASCII), fullmatch=True)
SITE = (
    st.none()
    | st.lists(WORDS, min_size=1, max_size=4).map("/".join)
    | st.from_regex(re.compile(SITE_PATTERN, re.ASCII), fullmatch=True)
)
CONNECTION = st.sampled_from(["control", "data", "drops"])
NAMED = st.tuples(st.sampled_from(["devices", "orchestrators"]), DEVICE, CONNECTION, SITE)
NEW = st.tuples(st.just("clients"), st.from_regex("[0-9a-f]{12}", fullmatch=True), st.none(), SITE)
CONNECTIONS = NAMED | NEW


def made(kind: str, name: str, connection: str | None, site: str | None) -> str:
    return client_id(kind, *((name, connection) if connection else (name,)), site=site)  # type: ignore[arg-type]


@given(CONNECTIONS, CONNECTIONS)
def test_two_connections_share_an_id_only_if_they_are_the_same(
    one: tuple[str, str, str | None, str | None], other: tuple[str, str, str | None, str | None]
) -> None:
    assert (made(*one) == made(*other)) == (one == other)


@given(CONNECTIONS)
def test_an_id_has_only_signs_that_brokers_take(one: tuple[str, str, str | None, str | None]) -> None:
    assert re.fullmatch(r"s2m3[a-z0-9.-]+", made(*one))


def test_ids_have_this_form() -> None:
    assert client_id("devices", "gw-a", "control") == "s2m3.devices.gw-a.control"
    assert client_id("devices", "gw-a", "data", site="plant-4/hall") == "s2m3.plant-4.hall.devices.gw-a.data"
    assert client_id("clients", "a1") == "s2m3.clients.a1"
    here = Connection(site="a")
    assert client_id_for(here) != client_id_for(here)
    assert client_id_for(Connection(client_id="cam-1", site="a")) == "cam-1"


def test_a_clients_own_id_is_that_of_its_connection_and_another_one_has_a_new_one() -> None:
    broker = MemoryBroker()
    with Client(client_id="cam-1", make_transport=broker.connect), Client(site="a/b", make_transport=broker.connect):
        own, new = broker.connected
    assert own == "cam-1"
    assert re.fullmatch(r"s2m3\.a\.b\.clients\.[0-9a-f]{12}", new)
