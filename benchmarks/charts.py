"""Bar charts in SVG of the columns marked for it, drawn from the JSON alone; readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

__all__ = ["draw"]

_WIDTH, _LABELS, _VALUES = 860, 370, 90
_BAR, _GAP, _HEAD = 18, 8, 54
_OURS = "baas-auth-plugins"
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600; font-size: 15px }
.bar { fill: #8c959f }
.ours { fill: #2f81f7 }
@media (prefers-color-scheme: dark) { text { fill: #9da7b3 } .bar { fill: #6e7681 } }
"""


def draw(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return each chart's name and its SVG."""
    for table in results["tables"]:
        for column in table["columns"]:
            if column["chart"]:
                bars = [(row["label"], row["values"][column["name"]]) for row in table["rows"]]
                numbers = [(label, value) for label, value in bars if isinstance(value, int | float)]
                if numbers:
                    yield table["name"], _chart(table["title"], column, numbers)


def _chart(title: str, column: dict[str, Any], bars: list[tuple[str, float]]) -> str:
    height = _HEAD + len(bars) * (_BAR + _GAP)
    most = max(value for _, value in bars) or 1
    room = _WIDTH - _LABELS - _VALUES
    title, unit = escape(title.replace("`", "")), escape(column["name"])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="0" y="18">{title}</text>',
        f'<text x="0" y="38">{unit}</text>',
    ]
    for index, (label, value) in enumerate(bars):
        y = _HEAD + index * (_BAR + _GAP)
        kind = "bar ours" if label.startswith(_OURS) else "bar"
        length = max(room * value / most, 1)
        shown = f"{value:,.{column['digits']}f}"
        lines += [
            f'<text x="{_LABELS - 10}" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{_LABELS}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="3"/>',
            f'<text x="{_LABELS + length + 8:.1f}" y="{y + 14}">{shown}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
