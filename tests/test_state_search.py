"""Every interleaving of two processes over one record, with lost, ambiguous and late writes and a gateway that revokes.

The real coordinators and the real states run. A node is all that there is: both processes, the record, the gateway. From
each node the search tries each next step of each process, with each fate of its write, and visits no node twice.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from baas_auth_plugins._fleet.coordinator import FleetCoordinator
from baas_auth_plugins._fleet.store import Record, StoreDownError
from baas_auth_plugins._lifecycle.coordinator import Decision, LocalState
from baas_auth_plugins._lifecycle.effects import Flow, Sleep
from baas_auth_plugins._lifecycle.rate_limit import RateLimiter
from baas_auth_plugins._lifecycle.state import EMPTY, TokenState, merged
from baas_auth_plugins._oauth.token import Instant, Token

NOW = Instant(1_750_000_000.0, 1_000.0)
FATES = ("done", "lost", "ambiguous", "late")
TOKENS = [Token(f"t{number}", "Bearer", frozenset(), NOW.wall, 1e6, NOW.monotonic) for number in range(12)]


class Node(NamedTuple):
    """All that there is."""

    locals: tuple[TokenState, TokenState] = (EMPTY, EMPTY)
    turns: tuple[int, int] = (0, 0)
    seen: tuple[Any, Any] = (None, None)
    shared: TokenState | None = None
    valid: frozenset[int] = frozenset()
    issued: int = 0
    steps: tuple[tuple[Any, ...], tuple[Any, ...]] = (("idle",), ("idle",))
    late: tuple[Any, ...] = ()
    faults: int = 1
    revocations: int = 2


class Store:
    """The cache: each write has the fate that the search chooses."""

    def __init__(self) -> None:
        self.value: TokenState | None = None
        self.fate = "done"
        self.has_written = False
        self.late: Callable[[Any], Any] | None = None

    def read(self, _codec: Any, *, seconds: float) -> Flow[Any]:
        return Record(self.value, self.value, is_written=False)  # type: ignore[arg-type]
        yield

    def change(self, _codec: Any, decide: Any, *, seconds: float, seen: Any = None) -> Flow[Any]:
        new = decide(self.value)
        self.has_written = new is not None
        if self.fate in ("lost", "late") and new is not None:
            self.late = decide if self.fate == "late" else None
            raise StoreDownError(is_new=True)
        if new is not None:
            self.value = new
        if self.fate == "ambiguous" and new is not None:
            raise StoreDownError(is_new=True)
        return Record(self.value, self.value, is_written=new is not None)  # type: ignore[arg-type]
        yield


def run(flow: Flow[Any]) -> Any:
    """Run a flow; return "waits" if it has to wait for another process."""
    try:
        while True:
            if isinstance(next(flow), Sleep):
                return "waits"
    except StopIteration as end:
        return end.value


class Search:
    """The processes, which are set to a node before each step."""

    def __init__(self, *, newest_only: bool) -> None:
        self.newest_only = newest_only
        self.store = Store()
        self.local = [LocalState(None, "key") for _ in range(2)]
        self.processes = [
            FleetCoordinator("gateway", local, RateLimiter(None), self.store, None, None)  # type: ignore[arg-type]
            for local in self.local
        ]
        self.decisions: dict[Any, Any] = {}

    def enter(self, node: Node, fate: str) -> None:
        for number, process in enumerate(self.processes):
            self.local[number].value = node.locals[number]
            process._turn, process._seen = node.turns[number], node.seen[number]
            process._is_seen_now = False
        self.store.value, self.store.fate, self.store.late, self.store.has_written = node.shared, fate, None, False

    def leave(self, node: Node, who: int, step: tuple[Any, ...], **changes: Any) -> Node:
        steps = (step, node.steps[1]) if who == 0 else (node.steps[0], step)
        late = node.late
        if self.store.late is not None:
            key = (who, node.steps[who], node.locals[who], node.turns[who])
            self.decisions[key] = self.store.late
            late = (*late, key)
        return node._replace(
            locals=tuple(local.value for local in self.local),
            turns=tuple(process._turn for process in self.processes),
            seen=tuple(process._seen for process in self.processes),
            shared=self.store.value,
            steps=steps,
            late=late,
            faults=node.faults - (self.store.fate != "done"),
            **changes,
        )

    def next(self, node: Node) -> Iterator[Node]:
        """Return the nodes after this one."""
        is_idle = node.steps == (("idle",), ("idle",))
        if is_idle and node.revocations and node.valid:
            yield node._replace(valid=frozenset(), revocations=node.revocations - 1)
        for key in node.late:
            self.enter(node, "done")
            self.store.value = self.decisions[key](self.store.value) or self.store.value
            late = tuple(one for one in node.late if one is not key)
            yield node._replace(shared=self.store.value, late=late)
        for who in range(2):
            for fate in FATES if node.faults else FATES[:1]:
                self.enter(node, fate)
                after = getattr(self, f"_{node.steps[who][0]}")(node, who, *node.steps[who][1:])
                if after is not None and (fate == "done" or self.store.has_written):
                    yield after

    def _is_valid(self, node: Node, token: Token) -> bool:
        return int(token.access_token[1:]) in node.valid

    def _idle(self, node: Node, who: int) -> Node | None:
        """A call: it is accepted, or looks what others know."""
        local, process = self.local[who], self.processes[who]
        token = local.value.usable(None, 0, NOW)
        if token is None:
            return self.leave(node, who, ("asks", None))
        if self._is_valid(node, token):
            return None
        local.apply(lambda state: state.with_401(NOW))
        run(process.look(NOW.monotonic + 60))
        other = local.value.usable(token, 0, NOW)
        if other is not None:  # the replay; if that token was revoked, too, the next call heals it
            return self.leave(node, who, ("idle",))
        assert not local.value.rejection.remaining(NOW), "a 401 is returned, although no replay was rejected"
        local.apply(lambda state: state.without_token(token))
        return self.leave(node, who, ("asks", token))

    def _asks(self, node: Node, who: int, rejected: Token | None) -> Node | None:
        """The call takes the lead, or another process's token, or waits."""
        local, process = self.local[who], self.processes[who]
        call = SimpleNamespace(client=SimpleNamespace(timeout=10.0, leeway=0.0), rejected=rejected)
        flight, deadline = SimpleNamespace(hold=lambda _seconds: None), NOW.monotonic + 60
        work: Any = SimpleNamespace(call=call, flight=flight, token=None, deadline=deadline, is_urgent=True)
        decision = run(process.lead_or_adopt(work))
        if decision == "waits":
            return self.leave(node, who, node.steps[who])
        if decision is Decision.LEAD:
            return self.leave(node, who, ("leads",))
        assert local.value.usable(rejected, 0, NOW) is not None, "nothing was adopted"
        return self.leave(node, who, ("idle",))

    def _leads(self, node: Node, who: int) -> Node | None:
        """The leader gets a token, and publishes it."""
        token, number = TOKENS[node.issued], node.issued
        run(self.processes[who].publish(lambda state: state.renewed(token, NOW), ends_lead=True))
        valid = frozenset({number}) if self.newest_only else node.valid | {number}
        return self.leave(node, who, ("replays", token), valid=valid, issued=number + 1)

    def _replays(self, node: Node, who: int, token: Token) -> Node | None:
        """The API accepts the token, unless a newer one killed it."""
        if not self._is_valid(node, token):
            assert self.newest_only
            return self.leave(node, who, ("idle",))
        holds = self.local[who].value.token == token
        run(self.processes[who].publish(lambda state: state.with_acceptance() if state.token == token else state))
        if holds:
            assert not self.local[who].value.rejection.count, "an accepted token causes a back-off"
        return self.leave(node, who, ("idle",))


def check(node: Node) -> None:
    """What holds in each node: `merged` is settled at once, and both processes come to the same token."""
    for local in node.locals:
        result = merged(local, node.shared, NOW)
        assert merged(result, node.shared, NOW) == result
        generations = (local.generation, node.shared.generation if node.shared else 0)
        assert result.generation == max(generations)


@pytest.mark.parametrize("newest_only", [False, True], ids=["revoked only", "a new token kills the old one"])
def test_two_processes_in_each_order(newest_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One write may fail: no call is refused for it, no accepted token causes a back-off, and no generation falls."""
    monkeypatch.setattr(time, "time", lambda: NOW.wall)
    monkeypatch.setattr(time, "monotonic", lambda: NOW.monotonic)
    search, start = Search(newest_only=newest_only), Node()
    parents: dict[Node, Node | None] = {start: None}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        try:
            check(node)
            found = list(search.next(node))
        except AssertionError as error:
            pytest.fail(f"{error}\n" + "\n".join(told(parents, node)))
        for after in found:
            if after not in parents and after.issued < len(TOKENS):
                parents[after] = node
                queue.append(after)
    assert len(parents) > 500


def told(parents: dict[Node, Node | None], node: Node | None) -> list[str]:
    """Return how the search came to a node."""
    path: list[str] = []
    while node is not None:
        states = [*node.locals, node.shared]
        shown = [
            f"g{one.generation} {one.token and one.token.access_token} {one.verdict.name}" if one else "-"
            for one in states
        ]
        steps = [step[0] for step in node.steps]
        path.insert(
            0,
            f"{steps} locals {shown[:2]} record {shown[2]} lease {node.shared and node.shared.lease} valid {set(node.valid)}",
        )
        node = parents[node]
    return path
