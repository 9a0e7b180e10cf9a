"""The accounts of clients: which requests take turns as those of one client. Pure.

Owns how many accounts there are. On an open broker a client may give each of its requests another name, so names alone
are no quota. A name gets an account of its own when it comes again; until then it shares one with all new names. So a
client that invents names has one account, however many it invents, and those that keep their names have theirs.

Invariants:
- there are at most so many accounts of a single name as the broker's rules let count: few where anyone may use any
  name (``OPEN_OWN``), so that a client gets at least that share of a task's compute time, however many others ask;
  more where each client has a login (``LOGIN_OWN``). Further names share the account of new names;
- a name that is in use keeps its account: no other name can take it away before ``IDLE_S`` without a request;
- what is remembered of names is bounded.
"""

from __future__ import annotations

from broker.protocol.specs import ClientName

OPEN_OWN, LOGIN_OWN = 32, 1_000
MAX_NEW = 20_000  # names that came once and are remembered: 40 s of 500 requests a second
IDLE_S = 600.0
NEW: ClientName = "+"  # the account of new names; no client can have this name


class Accounts:
    """The accounts of the clients of one device, at most so many of single names. One thread uses it."""

    def __init__(self, most: int = OPEN_OWN) -> None:
        self._most = most
        self._own: dict[ClientName, float] = {}  # when the latest request came; the longest idle one first
        self._new: dict[int, None] = {}  # hashes of names; the oldest first

    def __len__(self) -> int:
        return len(self._own)

    def of(self, client: ClientName, now_s: float) -> ClientName:
        """The account of a client's request that has just arrived; of clients without a name it is the empty one."""
        if not client:
            return client
        if self._own.pop(client, None) is not None or self._is_due(client, now_s):
            self._own[client] = now_s
            return client
        return NEW

    def _is_due(self, client: ClientName, now_s: float) -> bool:
        """Whether a name without an account gets one now."""
        digest = hash(client)
        if digest not in self._new:
            self._new[digest] = None
            if len(self._new) > MAX_NEW:
                del self._new[next(iter(self._new))]
            return False
        if len(self._own) >= self._most:
            idlest = next(iter(self._own))
            if now_s < self._own[idlest] + IDLE_S:
                return False
            del self._own[idlest]
        del self._new[digest]
        return True
