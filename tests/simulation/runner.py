"""The command line: run many seeds, or replay one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from .simulate import Figures, InvariantError, simulate

__all__ = ["main", "run_seeds"]


def run_seeds(seeds: Iterable[int]) -> tuple[Figures, list[tuple[int, str]]]:
    """Run seeds; return the figures, and what failed."""
    figures, failures = Figures(), []
    for seed in seeds:
        try:
            simulate(seed, figures=figures)
        except Exception as error:
            failures.append((seed, f"{type(error).__name__}: {error}"))
    return figures, failures


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--trace", action="store_true", help="print each step")
    parser.add_argument("--plants", action="store_true", help="plant each bug, and print which seed catches it")
    options = parser.parse_args(arguments)
    if options.plants:
        from .plants import hunt_all

        return hunt_all(print)
    if options.seed is not None:
        try:
            simulate(options.seed, print if options.trace else None)
        except InvariantError as error:
            print(f"\n{error}")  # noqa: T201
            return 1
        return 0
    figures, failures = run_seeds(range(options.first, options.first + options.seeds))
    days = figures.seconds / 86_400
    print(  # noqa: T201
        f"{figures.seeds} seeds, {days:.0f} simulated days, {figures.token_requests} token requests, {figures.steps} steps"
    )
    for name, counted in (("calls", figures.calls), ("faults", figures.faults), ("invariants checked", figures.checks)):
        print(f"\n{name}:")  # noqa: T201
        for what, count in sorted(counted.items()):
            print(f"  {count:9}  {what}")  # noqa: T201
    print(f"\n{len(failures)} of {options.seeds} seeds failed")  # noqa: T201
    for seed, failure in failures:
        print(f"  replay: python -m tests.simulation --seed {seed} --trace  # {failure}")  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
