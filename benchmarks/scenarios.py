"""The list of scenarios, and what runs one of them: in a process of its own, so that none disturbs the next."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module

from .report import Options, Table

__all__ = ["SCENARIOS", "names", "run_apart"]

SCENARIOS = (
    "hot_path",
    "end_to_end",
    "stampede",
    "rollover",
    "storm",
    "per_hour",
    "imports",
    "memory",
    "scale",
    "fleet",
)
"""The modules of the scenarios, each with a `NAME`, and `run(options)`, which returns tables."""


def names() -> dict[str, str]:
    """Return the scenarios' names, and the module of each."""
    return {import_module(f".{module}", __package__).NAME: module for module in SCENARIOS}


def run_apart(module: str, options: Options) -> list[Table]:
    """Run a scenario in a fresh interpreter, which nothing has warmed up, patched or filled before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_run, module, options).result()


def _run(module: str, options: Options) -> list[Table]:
    tables: Iterable[Table] = import_module(f".{module}", __package__).run(options)
    return list(tables)
