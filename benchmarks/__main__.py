"""Run the scenarios, each in a process of its own, and print what they found: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .charts import draw
from .contestants import CONTESTANTS
from .report import Options, Table, bars_markdown, to_json, to_markdown
from .scenarios import names, run_apart

RESULTS = Path(__file__).parent / "results"
_DISTRIBUTIONS = ("requests", "urllib3", "httpx", "httpcore", "httpx2", "anyio", "cachetools", "cryptography")


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line names; return 1 if `--check` was given and a bar was missed."""
    modules = names()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(modules)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a rough look, in less than a minute")
    parser.add_argument("--full", action="store_true", help="a million objects where it is a hundred thousand")
    parser.add_argument(
        "--json", type=Path, help="write the results here (a whole run: benchmarks/results/results.json)"
    )
    parser.add_argument("--charts", type=Path, help="draw charts in this folder (a whole run: benchmarks/results)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parsed = parser.parse_args(arguments)
    unknown = sorted(set(parsed.names) - set(modules))
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(modules)}")
    chosen = [name for name in modules if not parsed.names or name in parsed.names]
    whole = len(chosen) == len(modules) and not parsed.quick
    command = " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    results: dict[str, Any] = {"environment": _environment(command)}
    print(_heading(results["environment"]), flush=True)
    tables: list[Table] = []
    for name in chosen:
        started = time.perf_counter()
        found = run_apart(modules[name], Options(quick=parsed.quick, full=parsed.full))
        tables += found
        print("\n".join([f"## {name}", "", *(to_markdown(table) for table in found)]), flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print(bars_markdown(tables))
    results["tables"] = [to_json(table) for table in tables]
    _write(
        results,
        parsed.json or (RESULTS / "results.json" if whole else None),
        parsed.charts or (RESULTS if whole else None),
    )
    return int(parsed.check and any(not bar.held for table in tables for bar in table.bars))


def _environment(command: str) -> dict[str, Any]:
    distributions = [c.distribution for c in CONTESTANTS if c.distribution]
    versions: dict[str, str | None] = {}
    for distribution in (*distributions, *_DISTRIBUTIONS):
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[distribution] = None
    return {
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # what else the machine was doing
        "versions": versions,
    }


def _heading(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version or '(not installed)'}" for name, version in environment["versions"].items())
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"`{environment['command']}`, {environment['date']}, {environment['python']}, {environment['system']},"
            f" {environment['cpus']} CPUs, load average {environment['load']} at the start",
            "",
            versions,
            "",
            "A dash is what a contestant does not offer; the JSON has the reason.",
            "",
        ]
    )


def _write(results: dict[str, Any], json_path: Path | None, charts_path: Path | None) -> None:
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if charts_path is not None:
        charts_path.mkdir(parents=True, exist_ok=True)
        for name, svg in draw(results):
            (charts_path / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
