"""The sandbox's page: one HTML file, with headers that keep everything else out."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from ._messages import Response

__all__ = ["page"]


@cache
def page() -> Response:
    """Return the page. Its policy admits its own script and style, by their digests, and nothing else."""
    html = files(__package__).joinpath("page.html").read_bytes()
    script, style = (_digests(html, tag) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = (
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
    )
    return Response(200, headers, html)


def _digests(html: bytes, tag: bytes) -> str:
    contents = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), html, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in contents)
