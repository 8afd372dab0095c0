"""A thousand seeds of the simulation hold every invariant, and each planted bug breaks one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simulation.plants import PLANTS, Plant, hunt
from simulation.runner import main, run_seeds
from simulation.simulate import Figures, simulate

SEEDS = range(1000)
REGRESSIONS = [
    1595,
    1668,
    2546,
    2711,
    4024,
    6661,
    8911,
    9418,
    17019,
    19742,
    20057,
    26473,
    28138,
    28992,
    30867,
    32012,
    34175,
    34744,
    44950,
    100678,
    101392,
    203616,
    308457,
]


_group = pytest.mark.xdist_group("a thousand seeds")
_timeout = pytest.mark.timeout(900)  # seconds


def together(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test in the process that runs the thousand seeds, which take a busy machine minutes."""
    return _group(_timeout(test))


@pytest.fixture(scope="module")
def run() -> tuple[Figures, list[tuple[int, str]]]:
    """What a thousand seeds amount to, and which of them failed."""
    return run_seeds(SEEDS)


@pytest.fixture(scope="module")
def thousand(run: tuple[Figures, list[tuple[int, str]]]) -> Figures:
    """What a thousand seeds amount to."""
    return run[0]


@together
def test_a_thousand_seeds_hold_every_invariant(run: tuple[Figures, list[tuple[int, str]]]) -> None:
    """No seed of a thousand breaks an invariant; one that does is named with the command that replays it."""
    figures, failures = run
    replays = [f"python -m tests.simulation --seed {seed} --trace  # {failure}" for seed, failure in failures]
    assert not failures, "\n".join(replays)
    assert figures.seeds == len(SEEDS)


@together
def test_every_invariant_is_exercised(thousand: Figures) -> None:
    """Each invariant is checked at least ten times in a thousand seeds, so that none holds for want of an occasion."""
    rare = {name: count for name, count in thousand.checks.items() if count < 10}
    assert len(thousand.checks) >= 30
    assert not rare


@together
def test_every_fault_is_injected(thousand: Figures) -> None:
    """Each kind of fault and trouble happens at least ten times in a thousand seeds."""
    rare = {name: count for name, count in thousand.faults.items() if count < 10}
    assert len(thousand.faults) >= 30
    assert not rare


@together
def test_days_of_traffic_pass(thousand: Figures) -> None:
    """A thousand seeds are hundreds of days of traffic; in spite of it all, thirty thousand calls are answered 200."""
    assert thousand.seconds > 300 * 86_400
    assert sum(count for name, count in thousand.calls.items() if name.endswith(": answered 200")) > 30_000


@together
def test_fleets_share_their_cache(thousand: Figures) -> None:
    """In a thousand seeds hundreds of processes die or start anew, and share their tokens in 50,000 operations on a cache."""
    assert thousand.processes > len(SEEDS) + 1000
    assert thousand.operations > 50_000
    assert thousand.faults["trouble: kill"] > 100
    assert thousand.checks["one mint per fleet"] > 50
    assert thousand.checks["at most one token request is in flight per key in the fleet"] > 1000


@pytest.mark.parametrize("seed", [0, 7, 123])
def test_a_seed_replays_exactly(seed: int) -> None:
    """The same seed gives the same trace, step by step, whatever ran before it."""
    traces: list[list[str]] = []
    for _ in range(2):
        trace: list[str] = []
        simulate(seed, trace.append)
        traces.append([line.partition(" at 0x")[0] for line in trace])
        simulate(seed + 1)
    assert traces[0] == traces[1]


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_failed_holds(seed: int) -> None:
    """A seed that once broke an invariant, rightly or not, breaks none."""
    simulate(seed)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_bug_is_caught(plant: Plant) -> None:
    """A bug planted into the production code breaks an invariant within a bounded number of seeds."""
    assert hunt(plant) is not None


def test_the_command_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """The documented command prints how many seeds, days, calls, faults and checks there were, and succeeds."""
    assert main(["--seeds", "20", "--from", "100"]) == 0
    printed = capsys.readouterr().out
    for word in ("20 seeds", "simulated days", "calls", "faults", "invariants checked", "0 of 20 seeds failed"):
        assert word in printed


def test_a_failing_seed_is_named_with_its_replay(capsys: pytest.CaptureFixture[str]) -> None:
    """A failing seed is printed with the command that replays it, and the status is not zero."""
    careless = next(plant for plant in PLANTS if plant.name == "no single flight")
    with careless.planted():
        assert main(["--seeds", "1"]) == 1
        assert "replay: python -m tests.simulation --seed 0 --trace" in capsys.readouterr().out
        assert main(["--seed", "0", "--trace"]) == 1
    printed = capsys.readouterr().out
    assert "token request, timeout" in printed
    assert "at most one token request is in flight per key" in printed
