"""The summary that the README shows, made of the last whole run: ``python -m benchmarks.summary``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["summary"]

_RESULTS = Path(__file__).parent / "results" / "results.json"
_DASH = "–"
_ROWS = {
    "static header": "static header, the limit",
    "baas-auth-plugins": "**baas-auth-plugins**",
    "Authlib": "Authlib",
    "requests-oauth2client": "requests-oauth2client",
    "httpx-auth": "httpx-auth",
    "google-auth": "google-auth",
    "msal": "msal",
    "five-minute buffer": "a five-minute buffer, as the gateways' samples have it",
    "by hand: snapshot, two clocks, origin check, 401 hook": "by hand: snapshot, two clocks, origin check, 401 hook",
}
_HEADS = (
    "",
    "requests hook",
    "httpx hook",
    "64 cold threads: token requests",
    "renewal under 32 threads: calls delayed",
    "200 calls, token revoked: 401s to the callers",
    "token requests an hour, L = 3600 / 420 / 300 s",
)


def summary(results: dict[str, Any]) -> str:
    """Return a Markdown table, and beneath it what it was measured with."""
    cell = _Cells(results)
    lines = ["| " + " | ".join(_HEADS) + " |", "|---" * len(_HEADS) + "|"]
    for label, shown in _ROWS.items():
        cells = (
            shown,
            cell("hot-path-hook", label, "× static", "{:.1f} ×"),
            cell("hot-path-flow", label, "× static", "{:.2f} ×"),
            cell("stampede-threads", label, "token requests", "{}"),
            cell("rollover", label, "calls delayed per renewal", "{:.0f}"),
            cell("storm-threads", label, "401s that reached callers", "{}"),
            " / ".join(cell("per-hour", label, f"{life} s", "{:,}") for life in (3600, 420, 300)),
        )
        lines.append("| " + " | ".join(_DASH if set(text) <= {*_DASH, "/", " "} else text for text in cells) + " |")
    environment = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    told = (
        f"`{environment['command']}`, {environment['date']}, {environment['python']}, {environment['system']},"
        f" {environment['cpus']} CPUs: {versions}."
    )
    return "\n".join([*lines, "", told])


class _Cells:
    def __init__(self, results: dict[str, Any]) -> None:
        self._tables = {
            table["name"]: {row["label"]: row["values"] for row in table["rows"]} for table in results["tables"]
        }

    def __call__(self, table: str, label: str, column: str, form: str) -> str:
        value = self._tables[table].get(label, {}).get(column)
        return _DASH if value is None or (label == "static header" and "×" not in form) else form.format(value)


def main() -> None:
    """Put the summary in its place in the README."""
    readme = Path(__file__).parent.parent / "README.md"
    begin, end = "<!-- benchmarks -->", "<!-- /benchmarks -->"
    before, _, rest = readme.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    table = summary(json.loads(_RESULTS.read_text(encoding="utf-8")))
    readme.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
