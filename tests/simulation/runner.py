"""Runs seeds, prints their figures, and names the command that replays a failure."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import reduce

from .simulate import Figures, simulate

__all__ = ["main", "report", "run_seeds"]

_CHUNK = 100
Failure = tuple[int, str]


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_seeds(seeds: Iterable[int]) -> tuple[Figures, list[Failure]]:
    """Run seeds one after the other; return what they amount to, and what failed."""
    figures, failures = Figures(), []
    for seed in seeds:
        try:
            figures.add(simulate(seed))
        except Exception as error:
            failures.append((seed, f"{type(error).__name__}: {error}"))
    return figures, failures


def report(figures: Figures, failures: Sequence[Failure], seconds: float, say: Callable[[str], object] = say) -> None:
    """Print the figures, and how to replay what failed."""
    say(
        f"{figures.seeds} seeds, {figures.seconds / 86400:.1f} simulated days, {sum(figures.calls.values())} calls, "
        f"{figures.api_requests} API requests, {figures.token_requests} token requests, {figures.steps} steps, "
        f"{figures.processes} processes, {figures.operations} operations on shared caches, "
        f"{sum(figures.faults.values())} faults, {sum(figures.checks.values())} invariants checked, {seconds:.1f} s"
    )
    tables: tuple[tuple[str, Counter[str]], ...] = (
        ("Calls, by outcome", figures.calls),
        ("Faults injected", figures.faults),
        ("Invariants checked", figures.checks),
    )
    for title, table in tables:
        say(f"\n{title}:")
        for name, count in sorted(table.items()):
            say(f"  {count:9} {name}")
    for seed, failure in failures:
        say(f"\nFAILED seed {seed}: {failure}\n  replay: python -m tests.simulation --seed {seed} --trace")
    say(f"\n{len(failures)} of {figures.seeds + len(failures)} seeds failed")


def replay(seed: int, *, trace: bool) -> int:
    """Run one seed, with its trace if asked for."""
    started = time.perf_counter()
    try:
        figures = simulate(seed, say if trace else None)
    except Exception:
        say(traceback.format_exc())
        return 1
    report(figures, [], time.perf_counter() - started)
    return 0


def main(argv: Sequence[str]) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="start", help="the first seed")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every step")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--plant", action="store_true", help="plant bugs, and say what caught each")
    arguments = parser.parse_args(argv)
    if arguments.plant:
        from .plants import hunt_all

        return hunt_all(say)
    if arguments.seed is not None:
        return replay(arguments.seed, trace=arguments.trace)
    started = time.perf_counter()
    seeds = range(arguments.start, arguments.start + arguments.seeds)
    chunks = [seeds[i : i + _CHUNK] for i in range(0, len(seeds), _CHUNK)]
    if arguments.jobs > 1:
        with ProcessPoolExecutor(arguments.jobs) as pool:
            parts = list(pool.map(run_seeds, chunks))
    else:
        parts = list(map(run_seeds, chunks))
    figures = reduce(lambda total, part: (total.add(part[0]), total)[1], parts, Figures())
    failures = [failure for part in parts for failure in part[1]]
    report(figures, failures, time.perf_counter() - started)
    return 1 if failures else 0
