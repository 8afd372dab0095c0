"""Seeds of the simulation hold every invariant, and each planted bug breaks one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulation.plants import PLANTS, Plant, hunt
from simulation.runner import main, run_seeds
from simulation.scenario import Scenario
from simulation.simulate import Figures, Simulation, patched, simulate

# Not settled: whether the rule or the core is wrong.
OPEN = {
    30_774: "after a wrong TTL two processes lead; a call fails although its process got a token of its own",
    32_356: "an issuer hands out the token that the call's 401 dropped: the call fails, and others of its process are served",
    33_729: "a record is flushed while two processes lead: a refusal that was just noted is asked for again",
    33_864: "a wall clock is stepped between a 401 and a renewal: a token that is fresh by the book is renewed",
    33_988: "a cache that fails half the time: a caller waits for another's lease until its max_wait ends",
}
SEEDS = [seed for seed in range(20_000, 20_400) if seed not in OPEN]

together = pytest.mark.xdist_group("seeds of the simulation")


@pytest.fixture(scope="module")
def run() -> tuple[Figures, list[tuple[int, str]]]:
    """What the seeds amount to, and which of them failed."""
    return run_seeds(SEEDS)


@together
def test_seeds_hold_every_invariant(run: tuple[Figures, list[tuple[int, str]]]) -> None:
    """No seed breaks an invariant; one that does is named with the command that replays it."""
    replays = [f"python -m tests.simulation --seed {seed} --trace  # {failure}" for seed, failure in run[1]]
    assert not replays, "\n".join(replays)


@together
def test_invariants_and_faults_have_occasions(run: tuple[Figures, list[tuple[int, str]]]) -> None:
    """Each invariant is checked and each fault happens, in months of traffic."""
    figures = run[0]
    assert len(figures.checks) >= 35
    assert len(figures.faults) >= 30
    assert figures.seconds > 100 * 86_400
    assert sum(count for name, count in figures.calls.items() if name.endswith(": answered 200")) > 4000


def test_a_seed_replays_exactly() -> None:
    """The same seed gives the same trace."""
    traces: list[list[str]] = []
    for _ in range(2):
        traces.append([])
        simulate(1234, traces[-1].append)
    assert traces[0] == traces[1]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_bug_is_caught(plant: Plant) -> None:
    """A bug that is planted into the core breaks an invariant within some hundred seeds."""
    assert hunt(plant) is not None


CALLS = (("leader", 0, "get_token"), ("fresh", 0, "get_token"), ("follower", 1, "get_token"), ("401", 1, "requests"))


class Quiet(Simulation):
    """A fleet in which nothing goes wrong, and in which calls are made one at a time."""

    def __init__(self, limit: tuple[int, float] | None) -> None:
        calm = replace(
            Scenario.draw(0),
            climate=replace(Scenario.draw(0).climate, life=3600.0, stormy=0.0, newest_only=False, reissues=False, api_faults=0.0),
            limit=limit, leeway=300.0, timeout=10.0, max_wait=60.0, processes=2, parties=1, is_shared=True,
            has_tenants=False, background=False, has_vault=False, skews=(0.0, 0.0), impatience=0.0, denied=0.0,
            unreplayable=0.0, hooks=0.0, cache_stormy=0.0, troubles=(),
        )  # fmt: skip
        super().__init__(1, Figures(), None, calm)

    def counts(self) -> dict[str, int]:
        """Return the operations on the cache of one call after the other."""
        counts = {}
        with patched(self):
            self.boot()
            for who, process, kind in CALLS:
                assert self.store is not None
                before = self.store.operations
                if who == "401":
                    self.gateway.revoke()
                self.start(kind, self.processes[process].parties[0])
                self.world.run(1000)
                counts[who] = self.store.operations - before
        return counts


@pytest.mark.parametrize(("limit", "leads"), [(None, 3), ((10, 60.0), 5)])
def test_operations_on_the_cache_are_few(limit: tuple[int, float] | None, leads: int) -> None:
    """A leader needs 3 operations for a token's life, 5 with a rate limit; a follower at most 2; a 401 one more than a leader; a fresh token none."""
    counts = Quiet(limit).counts()
    assert counts["leader"] <= leads
    assert counts["follower"] <= 2
    assert counts["fresh"] == 0
    assert counts["401"] <= leads + 1


def test_the_command_prints_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints seeds, days, calls, faults and checks, and succeeds."""
    assert main(["--seeds", "5", "--from", "100"]) == 0
    printed = capsys.readouterr().out
    for word in ("5 seeds", "simulated days", "calls:", "faults:", "invariants checked:", "0 of 5 seeds failed"):
        assert word in printed


def test_a_failing_seed_is_named_with_its_replay(capsys: pytest.CaptureFixture[str]) -> None:
    """A seed that fails is printed with the command that replays it, and the status is not zero."""
    seed, invariant = hunt(PLANTS[0]) or (0, "")
    with PLANTS[0].planted():
        assert main(["--seeds", "1", "--from", str(seed)]) == 1
        assert f"replay: python -m tests.simulation --seed {seed} --trace" in capsys.readouterr().out
        assert main(["--seed", str(seed), "--trace"]) == 1
    assert invariant in capsys.readouterr().out
