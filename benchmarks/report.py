"""What a scenario hands back, tables and the bars in them, and how both are shown: as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = [
    "Bar",
    "Column",
    "Missing",
    "Options",
    "Row",
    "Table",
    "Value",
    "bars_markdown",
    "missing_row",
    "to_json",
    "to_markdown",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """How thorough a run is to be."""

    quick: bool = False
    full: bool = False

    def pick(self, default: T, quick: T, full: T | None = None) -> T:
        """Return the amount of work that fits the run."""
        if self.quick:
            return quick
        return full if self.full and full is not None else default


@dataclass(frozen=True, slots=True)
class Missing:
    """A value that was not measured, and why: shown as a dash."""

    reason: str


Value = float | str | Missing


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, the digits its numbers are shown with, and whether it is drawn as a chart."""

    name: str
    digits: int = 0
    chart: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A contestant's values, one per column."""

    label: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that the package must hold: a measured value and the most it may be."""

    what: str
    measured: float
    limit: float
    digits: int = 2

    @property
    def held(self) -> bool:
        """Whether the value is within the limit."""
        return self.measured <= self.limit


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a scenario's results.

    Args:
        name: short and unique, for JSON and file names.
        title: what was measured, and in what.
        columns: all but the first, which has the rows' labels.
        rows: one for each contestant, or whatever is compared.
        note: what a reader must know to read the numbers.
        bars: what the package must hold.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""
    bars: tuple[Bar, ...] = ()


def missing_row(label: str, columns: Iterable[Column], reason: str) -> Row:
    """Return a row of dashes."""
    return Row(label, tuple(Missing(reason) for _ in columns))


def to_markdown(table: Table) -> str:
    """Return a table as Markdown, with its note and its bars."""
    heads = ["", *(column.name for column in table.columns)]
    lines = [f"### {table.title}", "", _line(heads), _line(["---", *("---:" for _ in table.columns)])]
    lines += [
        _line(
            [
                row.label,
                *(_shown(value, column.digits) for value, column in zip(row.values, table.columns, strict=True)),
            ]
        )
        for row in table.rows
    ]
    if table.note:
        lines += ["", table.note]
    if table.bars:
        lines += ["", *(f"- {_told(bar)}" for bar in table.bars)]
    return "\n".join([*lines, ""])


def bars_markdown(tables: Iterable[Table]) -> str:
    """Return all bars in one list, those that are not held first."""
    bars = sorted((bar for table in tables for bar in table.bars), key=lambda bar: bar.held)
    return "\n".join(["### The bars", "", *(f"- {_told(bar)}" for bar in bars), ""])


def to_json(table: Table) -> dict[str, Any]:
    """Return a table as plain data; a value that is missing becomes null, and its reason is told beside it."""
    rows = []
    for row in table.rows:
        cells = dict(zip((column.name for column in table.columns), row.values, strict=True))
        missing = {name: value.reason for name, value in cells.items() if isinstance(value, Missing)}
        values = {name: None if isinstance(value, Missing) else value for name, value in cells.items()}
        rows.append({"label": row.label, "values": values, **({"missing": missing} if missing else {})})
    return {
        "name": table.name,
        "title": table.title,
        "columns": [{"name": c.name, "digits": c.digits, "chart": c.chart} for c in table.columns],
        "rows": rows,
        "note": table.note,
        "bars": [
            {"what": bar.what, "measured": bar.measured, "limit": bar.limit, "held": bar.held} for bar in table.bars
        ],
    }


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(value: Value, digits: int) -> str:
    if isinstance(value, Missing):
        return "–"
    return value if isinstance(value, str) else f"{value:,.{digits}f}"


def _told(bar: Bar) -> str:
    verdict = "held" if bar.held else "**missed**"
    return f"{verdict}: {bar.what}: {bar.measured:,.{bar.digits}f} (at most {bar.limit:,.{bar.digits}f})"
