"""``demo``: every gateway through every client that is installed, on sandboxes, with the figures in a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import PROVIDERS
from ..sandbox import Sandbox
from ._demo_clients import CLIENTS
from ._demo_rows import CACHED_CALLS, COLD_CALLERS, SHORT_LIFE, Row, cache_and_replay, renew, start_cold
from ._exit_codes import ExitCode
from ._gateways import AuthClass
from ._output import console, fail, print_facts, print_json, print_line

__all__ = ["demo"]

_NARROW = 64  # columns
_TITLES = ("calls", "tokens", "renewed", "replays", "cold", "added")
_SHORT_TITLES = ("call", "tok", "new", "rep", "cold", "ms")
_LEGEND = (
    f"API calls: one, then {CACHED_CALLS} with the cached token",
    "token requests for these calls",
    f"renewals of a token that is valid for {SHORT_LIFE:g} s",
    "replays of one call whose token was revoked",
    f"token requests of {COLD_CALLERS} callers that start together",
    "time added to a cached call, over one with a fixed header (median)",
)


def demo(
    *,
    as_json: bool = False,
    classes: Iterable[AuthClass] = PROVIDERS,
    clients: Iterable[str] = CLIENTS,
    sandbox: Callable[..., Sandbox] = Sandbox,
) -> int:
    """Run the demo: progress goes to standard error, the table to standard output.

    Args:
        as_json: print the figures as JSON, not as a table.
        classes: the auth classes of the gateways to show.
        clients: names of `CLIENTS` to show them with.
        sandbox: makes each row's sandboxes.

    Returns:
        The exit code: 0 if every figure is what the package promises.
    """
    started = time.perf_counter()
    names = list(clients)
    rows = [Row(cls, name, sandbox) for cls in classes for name in names]
    _measure(rows)
    seconds = time.perf_counter() - started
    problems = [f"{row.cls.provider.name}, {row.client}: {problem}" for row in rows for problem in row.problems]
    if as_json:
        print_json({"seconds": seconds, "rows": [_figures(row) for row in rows], "problems": problems})
    else:
        _print_table(rows, console(sys.stdout))
        verdict = "with figures that are not as promised" if problems else "every figure as promised"
        print_line(f"{len(rows)} rows in {seconds:.1f} s, {verdict}.")
    for problem in problems:
        fail(problem)
    return ExitCode.FAILED if problems else ExitCode.OK


def _measure(rows: list[Row]) -> None:
    out = console(sys.stderr)
    if not out.is_terminal:
        print_line(f"demo: {len(rows)} rows, some 10 s", stream=sys.stderr)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(16), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("", total=2 * len(rows))
        for row in rows:
            progress.update(task, description=f"{row.cls.provider.name} {row.client}")
            row.attempt(cache_and_replay)
            row.attempt(start_cold)
            progress.advance(task)
        progress.update(task, description="renewals")
        with ThreadPoolExecutor(max(1, len(rows))) as pool:
            for _ in as_completed([pool.submit(row.attempt, renew) for row in rows]):
                progress.advance(task)


def _figures(row: Row) -> dict[str, Any]:
    return {
        "provider": row.cls.provider.name,
        "client": row.client,
        "api_calls": row.api_calls,
        "token_requests": row.token_requests,
        "renewals": row.renewals,
        "replays": row.replays,
        "cold_token_requests": row.cold,
        "added_seconds": row.added,
    }


def _print_table(rows: list[Row], out: Console) -> None:
    narrow = out.width < _NARROW
    titles = _SHORT_TITLES if narrow else _TITLES
    table = Table(box=None if narrow else box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("client",) if narrow else ("gateway", "client"):
        table.add_column(title, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        name = row.cls.provider.name
        if name != previous and narrow:
            table.add_row(f"{name}:")
        elif name != previous and previous is not None:
            table.add_section()
        previous = name
        table.add_row(*(() if narrow else (name,)), row.client, *_cells(row, unit="" if narrow else " ms"))
    out.print(table)
    if narrow:
        print_line("")
    print_facts(dict(zip(titles, _LEGEND, strict=True)))
    print_line("")


def _cells(row: Row, *, unit: str) -> list[str]:
    counts = (row.api_calls, row.token_requests, row.renewals, row.replays, row.cold)
    added = "-" if row.added is None else f"{round(row.added * 1000, 2) + 0.0:.2f}{unit}"
    return [*("-" if count is None else str(count) for count in counts), added]
