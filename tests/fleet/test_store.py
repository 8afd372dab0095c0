"""A shared cache that hangs, fails, or is changed by others: bounded operations, one repetition, and a circuit breaker."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from by_hand import Steps, joined_threads
from conftest import FakeClock
from processes import Dict, Faulty

from baas_auth_plugins._fleet.codec import Codec
from baas_auth_plugins._fleet.store import Record, SharedStore, StoreDownError
from baas_auth_plugins._lifecycle.effects import Outcome, RunInThread

CODEC: Codec[int] = Codec("key", bytes(32), lambda value, _now: value, lambda value, _now, _age: value, lambda *_: 60.0)


@pytest.fixture
def shared(clock: FakeClock) -> Dict:
    return Dict(lambda: clock.monotonic)


@pytest.fixture
def cache(shared: Dict) -> Faulty:
    return Faulty(shared)


@pytest.fixture
def store(cache: Faulty) -> SharedStore:
    return SharedStore(cache)


def put(value: int) -> Callable[[int | None], int | None]:
    return lambda _found: value


def increase(found: int | None) -> int | None:
    return (found or 0) + 1


def leave(_found: int | None) -> int | None:
    return None


def finish(steps: Steps, outcomes: tuple[Any, ...] = ()) -> Any:
    """Perform each operation, unless an outcome is given for it."""
    left = list(outcomes)
    while not steps.is_over:
        assert isinstance(steps.effect, RunInThread)
        outcome = left.pop(0) if left else None
        if outcome is None:
            steps.effect.job._run()
            outcome = steps.effect.job.outcome
        steps.go(outcome)
    if steps.error is not None:
        raise steps.error
    return steps.value


def change(store: SharedStore, decide: Any, *outcomes: Any, seen: Record[int] | None = None) -> Record[int]:
    found: Record[int] = finish(Steps(store.change(CODEC, decide, seconds=1.0, seen=seen)), outcomes)
    return found


def read(store: SharedStore, *outcomes: Any) -> Record[int]:
    found: Record[int] = finish(Steps(store.read(CODEC, seconds=1.0)), outcomes)
    return found


FAILED: Outcome[Any] = Outcome(error=ConnectionError("redis://:password@host"))
LATE: Outcome[Any] = Outcome(is_timeout=True)


# -- compare and swap


def test_change_reads_decides_and_writes(store: SharedStore, cache: Faulty) -> None:
    """A change is one read and one swap; the record that it returns can be the next one's starting point."""
    first = change(store, put(1))
    assert (first.value, first.is_written, cache.operations) == (1, True, ["get", "swap"])
    second = change(store, increase, seen=first)
    assert (second.value, cache.operations[2:]) == (2, ["swap"])


def test_change_may_decide_to_leave_it(store: SharedStore, cache: Faulty) -> None:
    """Where the record shows that there is nothing to change, nothing is written."""
    change(store, put(5))
    cache.operations.clear()
    found = change(store, leave)
    assert (found.value, found.is_written, cache.operations) == (5, False, ["get"])


def test_read_writes_nothing(store: SharedStore, cache: Faulty) -> None:
    """An empty cache is a record without a value."""
    assert read(store) == Record(None, None, is_written=False)
    assert cache.operations == ["get"]


def test_change_that_another_process_overtook_is_decided_anew(store: SharedStore, shared: Dict) -> None:
    """If the record is not what was seen, it is read again, and the decision is taken on that."""
    seen = change(store, put(1))
    others = Faulty(shared)
    change(SharedStore(others), put(10))
    assert change(store, increase, seen=seen).value == 11


def test_no_change_of_many_is_lost(clock: FakeClock, shared: Dict) -> None:
    """Processes that change one record at the same time count without losing a step."""
    caches = [Faulty(shared) for _ in range(5)]
    stores = [SharedStore(cache) for cache in caches]
    for _ in range(10):
        records = [read(store) for store in stores]
        for store, seen in zip(stores, records, strict=True):
            change(store, increase, seen=seen)
    assert read(stores[0]).value == 50


def test_change_that_is_always_overtaken_ends(store: SharedStore, shared: Dict, cache: Faulty) -> None:
    """A swap that fails for ever, as on a read-only replica that says so quietly, is given up as an outage."""
    cache.swap = lambda *_: False  # type: ignore[method-assign]
    with pytest.raises(StoreDownError):
        change(store, increase)


def test_record_of_another_client_is_replaced(store: SharedStore, shared: Dict, clock: FakeClock) -> None:
    """A value that cannot be read is a miss, and does not stand in the way."""
    shared.values["key"] = (b"no record", clock.monotonic + 60)
    assert read(store).value is None
    assert change(store, put(3)).value == 3
    assert read(store).value == 3


# -- bounds


@pytest.mark.parametrize("seconds", [0.25, 1.0])
def test_operation_waits_as_long_as_its_caller_can(store: SharedStore, seconds: float) -> None:
    """Each operation, and its repetition, is a bounded wait for a thread."""
    steps = Steps(store.read(CODEC, seconds=seconds))
    for _ in range(2):
        assert isinstance(steps.effect, RunInThread)
        assert steps.effect.seconds == seconds
        steps.go(LATE)
    assert isinstance(steps.error, StoreDownError)


@pytest.mark.parametrize("failure", [FAILED, LATE], ids=["an error", "a timeout"])
def test_one_failure_is_repeated(store: SharedStore, failure: Any, caplog: pytest.LogCaptureFixture) -> None:
    """After one failure the operation is tried once more; nothing is logged, and the breaker stays closed."""
    assert change(store, put(1), failure).value == 1
    assert read(store, failure).value == 1
    assert caplog.records == []


# -- the circuit breaker


def test_two_failures_open_the_breaker(store: SharedStore, clock: FakeClock) -> None:
    """After two failures in a row the cache is not asked for 5, 10, 20, then 30 s; after each pause it is asked once."""
    with pytest.raises(StoreDownError) as caught:
        read(store, FAILED, FAILED)
    assert caught.value.is_new
    for seconds in (5, 10, 20, 30, 30):
        clock.advance(seconds - 0.01)
        steps = Steps(store.read(CODEC, seconds=1.0))
        assert isinstance(steps.error, StoreDownError), "it is not asked"
        clock.advance(0.02)
        steps = Steps(store.read(CODEC, seconds=1.0))
        assert isinstance(steps.effect, RunInThread), "it is asked"
        steps.go(FAILED)
        assert isinstance(steps.error, StoreDownError), "it is asked once"
        assert not steps.error.is_new


def test_success_closes_the_breaker(store: SharedStore, clock: FakeClock) -> None:
    """Once an operation works after a pause, all are tried as at the start."""
    for _ in range(3):
        with pytest.raises(StoreDownError):
            change(store, put(1), FAILED, FAILED)
        clock.advance(31)
    assert change(store, put(1)).is_written
    assert change(store, put(2), FAILED).value == 2, "one failure is repeated again"
    with pytest.raises(StoreDownError) as caught:
        read(store, FAILED, LATE)
    assert caught.value.is_new


def test_open_breaker_is_for_all_keys(store: SharedStore) -> None:
    """One cache object has one breaker, whichever record failed."""
    with pytest.raises(StoreDownError):
        read(store, FAILED, FAILED)
    other: Codec[int] = Codec("other", bytes(32), lambda *_: 0, lambda *_: 0, lambda *_: 1.0)
    assert isinstance(Steps(store.read(other, seconds=1.0)).error, StoreDownError)


def test_cache_that_can_be_read_but_not_written_stays_down(store: SharedStore, clock: FakeClock) -> None:
    """A full Redis, or a replica, answers reads: that alone does not close the breaker; a write does."""
    with pytest.raises(StoreDownError):
        change(store, put(1), FAILED, FAILED)
    clock.advance(5.01)
    assert read(store).value is None
    steps = Steps(store.change(CODEC, put(1), seconds=1.0))
    steps.go(FAILED)
    assert isinstance(steps.error, StoreDownError), "half open: one attempt"
    clock.advance(10.01)
    assert change(store, put(1)).is_written
    assert change(store, put(2), FAILED).value == 2, "closed"


def test_both_changes_are_logged_once(store: SharedStore, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Down is one WARNING and up is one INFO, however often it fails; neither has the address of the cache."""
    with caplog.at_level(logging.INFO, "baas_auth_plugins"):
        for _ in range(4):
            with pytest.raises(StoreDownError):
                read(store, FAILED, FAILED)
            clock.advance(31)
        for _ in range(3):
            read(store)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "the token cache failed twice (ConnectionError: see the cache's own log)."
            " Each process requests tokens alone until it works again",
        ),
        ("INFO", "the token cache works again"),
    ]


def test_callers_at_the_same_time_open_it_once(store: SharedStore, clock: FakeClock) -> None:
    """Ten operations that were under way as the cache went down count as one failure."""
    flying = [Steps(store.read(CODEC, seconds=1.0)) for _ in range(10)]
    for steps in flying:
        steps.go(FAILED)
    for steps in flying:
        steps.go(FAILED)
    assert all(isinstance(steps.error, StoreDownError) for steps in flying)
    clock.advance(5.01)
    assert read(store).value is None


def test_operation_from_before_the_outage_does_not_close_it(store: SharedStore, clock: FakeClock) -> None:
    """An operation that began before the cache went down, and succeeds, says nothing about the cache of now."""
    early = Steps(store.change(CODEC, put(1), seconds=1.0))
    with pytest.raises(StoreDownError):
        read(store, FAILED, FAILED)
    finish(early)
    with pytest.raises(StoreDownError):
        read(store)
    clock.advance(5.01)
    assert read(store).value == 1


def test_reset_closes_it(store: SharedStore) -> None:
    """After `testing.reset` the cache is asked again at once."""
    with pytest.raises(StoreDownError):
        read(store, FAILED, FAILED)
    store.reset()
    assert read(store).value is None


def test_breaker_of_the_future_is_void(store: SharedStore, clock: FakeClock) -> None:
    """A clock that was set back does not keep the cache away for hours."""
    with pytest.raises(StoreDownError):
        read(store, FAILED, FAILED)
    clock.step_wall(-3600)
    assert read(store).value is None


# -- later, and never


def test_change_later_waits_for_nothing(store: SharedStore, shared: Dict) -> None:
    """A flow that was closed still writes: in a thread of its own, whose end nobody waits for."""
    with joined_threads():
        store.change_later(CODEC, put(9))
    assert read(store).value == 9


def test_change_later_does_not_reach_a_cache_that_is_gone(shared: Dict) -> None:
    """The store holds its cache weakly: with the auth objects it goes, and an operation fails quietly."""
    cache = Faulty(shared)
    store, alive = SharedStore(cache), weakref.ref(cache)
    del cache
    gc.collect()
    assert alive() is None
    with pytest.raises(StoreDownError):
        read(store)


def test_cache_with_slots_is_held(shared: Dict) -> None:
    """A class that allows no weak references is kept instead."""

    class Slotted:
        __slots__ = ("_shared",)

        def __init__(self) -> None:
            self._shared = shared

        def get(self, key: str) -> Any:
            return self._shared.get(key)

        def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
            return self._shared.swap(key, old, new, ttl)

    store = SharedStore(Slotted())
    gc.collect()
    assert change(store, put(4)).value == 4


@pytest.mark.parametrize(
    "kept", [("text", 60.0), (b"bytes", 60.0), (None, 60.0), (b"", 0.0), (json.dumps([60, 1]).encode(), 60.0)], ids=repr
)
def test_odd_values_of_a_users_cache_are_misses(kept: Any, clock: FakeClock) -> None:
    """Whatever a user's own cache returns as a value, it is a miss."""

    class Odd:
        def get(self, key: str) -> Any:
            return kept

        def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
            return True

    cache = Odd()
    assert read(SharedStore(cache)).value is None


@pytest.mark.parametrize("kept", [7, b"bytes", (b"bytes",), (b"bytes", "60"), (b"bytes", None)], ids=repr)
def test_cache_that_breaks_the_protocol_is_down(kept: Any, clock: FakeClock) -> None:
    """A cache that returns something else than a value and its seconds fails like one that raises."""

    class Broken:
        def get(self, key: str) -> Any:
            return kept

        def swap(self, key: str, old: Any, new: Any, ttl: float) -> bool:
            return True

    cache = Broken()
    with pytest.raises(StoreDownError):
        read(SharedStore(cache))
