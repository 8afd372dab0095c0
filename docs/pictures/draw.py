"""Draw the pictures of the documentation: ``python docs/pictures/draw.py``. Readable on light and on dark pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

__all__ = ["HOUSE", "boundaries", "house", "pictures", "timeline"]

HERE = Path(__file__).parent

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 12px; fill: #57606a }
.title { font-weight: 600; font-size: 15px }
.name { font-weight: 600 }
.fresh { fill: #2da44e33; stroke: #2da44e }
.stale { fill: #bf870033; stroke: #bf8700 }
.critical { fill: #e1601033; stroke: #e16010 }
.expired { fill: #cf222e33; stroke: #cf222e }
.room { fill: #2f81f71f; stroke: #2f81f7 }
.face { fill: #2da44e1f; stroke: #2da44e }
.ground { fill: #8c959f1f; stroke: #8c959f }
.line { stroke: #57606a; fill: none }
.tip { fill: #57606a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9da7b3 } .line { stroke: #9da7b3 } .tip { fill: #9da7b3 }
}
"""


def boundaries(lifetime: float, leeway: float = 300.0) -> tuple[float, float, float]:
    """Return the ages in seconds at which a token becomes stale, critical and expired."""
    stale = min(leeway, lifetime / 2)
    critical = min(60, lifetime / 10, stale / 2)
    expired = min(5, lifetime / 60, critical / 2)
    return lifetime - stale, lifetime - critical, lifetime - expired


def timeline() -> str:
    """Return the timeline of three tokens."""
    left, width, row = 132, 728, 62
    shares = (0.34, 0.26, 0.22, 0.18)
    edges = [left + width * sum(shares[:count]) for count in range(5)]
    phases = {
        "fresh": ("all calls get the token", "from the cache"),
        "stale": ("one call renews it;", "the others get the old one"),
        "critical": ("all calls join", "one renewal"),
        "expired": ("never sent; all calls", "join one request"),
    }
    lines = ['<text class="title" x="0" y="18">A token\'s life (leeway 300 s). Not to scale.</text>']
    for (name, words), start, end in zip(phases.items(), edges, edges[1:], strict=False):
        middle = (start + end) / 2
        lines += [
            f'<text class="name" x="{middle:.0f}" y="48" text-anchor="middle">{name}</text>',
            *(
                f'<text class="small" x="{middle:.0f}" y="{66 + 15 * number}" text-anchor="middle">{escape(text)}</text>'
                for number, text in enumerate(words)
            ),
        ]
    for number, (lifetime, where) in enumerate(
        {3600: "Axia, NTX Pay, Avista", 420: "BS2 homologation", 300: "BS2"}.items()
    ):
        y = 98 + number * row
        lines += [
            f'<text class="name" x="0" y="{y + 14}">{lifetime} s</text>',
            f'<text class="small" x="0" y="{y + 30}">{where}</text>',
        ]
        for name, start, end in zip(phases, edges, edges[1:], strict=False):
            lines.append(
                f'<rect class="{name}" x="{start + 1:.0f}" y="{y}" width="{end - start - 2:.0f}" height="24" rx="3"/>'
            )
        for edge, age in zip(edges, (0, *boundaries(lifetime), lifetime), strict=True):
            anchor = "end" if edge == edges[-1] else "middle" if edge > left else "start"
            lines.append(f'<text class="small" x="{edge:.0f}" y="{y + 40}" text-anchor="{anchor}">{age:g} s</text>')
    return _svg(860, 98 + 3 * row, "A token's life: fresh, stale, critical, expired", lines)


HOUSE = (
    ("face", ("cli", "httpie_plugin", "opentelemetry", "testing"), "what uses the package"),
    ("face", ("sandbox", "providers", "introspection", "auth"), "the public face"),
    ("room", ("_http", "_fleet"), "over which client; which process sends"),
    ("room", ("_lifecycle",), "when a token is requested"),
    ("room", ("_oauth", "cache"), "what is sent and read; where tokens are kept"),
    ("ground", ("client_auth", "events", "exceptions", "_process"), "the ground"),
)
"""Kind, rooms and words of each floor, from the top."""


def house() -> str:
    """Return the house: each floor imports from the floors below it."""
    left, width, height, gap = 0.0, 520, 40, 14
    lines = ['<text class="title" x="0" y="18">The house. Imports go down, never up.</text>']
    for number, (kind, rooms, words) in enumerate(HOUSE):
        y = 34 + number * (height + gap)
        spare = (width - 8 * (len(rooms) - 1) - 9 * sum(map(len, rooms))) / len(rooms)
        x = left
        for room in rooms:
            each = 9 * len(room) + spare
            lines += [
                f'<rect class="{kind}" x="{x + 1:.0f}" y="{y}" width="{each - 2:.0f}" height="{height}" rx="5"/>',
                f'<text class="name" x="{x + each / 2:.0f}" y="{y + 25}" text-anchor="middle">{room}</text>',
            ]
            x += each + 8
        lines.append(f'<text class="small" x="{width + 18}" y="{y + 25}">{escape(words)}</text>')
        if number:
            lines.append(f'<path class="line" d="M{width / 2} {y - gap + 1}v{gap - 6}"/>')
            lines.append(f'<path class="tip" d="M{width / 2 - 4} {y - 6}h8l-4 5z"/>')
    return _svg(860, 34 + len(HOUSE) * (height + gap), "The rooms of the package and the order of imports", lines)


def _svg(width: int, height: int, title: str, lines: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *lines, "</svg>", ""])


def pictures() -> Iterator[tuple[Path, str]]:
    """Return each picture that is drawn from the package's rules, with its file."""
    yield HERE / "token-life.svg", timeline()
    yield HERE / "house.svg", house()


def main() -> None:
    """Write the pictures."""
    for path, content in pictures():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
