"""Keeping a token that must travel in a URL out of the logs of the HTTP libraries.

httpx logs every URL at INFO, urllib3 at DEBUG, and hpack logs every header. A filter on those loggers redacts the
strings that the current context hides, and leaves all other records alone. A filter applies to its own logger only,
not to the logger's children.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import quote

_LOGGERS = (
    "httpx",
    "httpx2",
    "urllib3.connectionpool",
    "urllib3.util.retry",
    "hpack.hpack",
    "hpack.table",
    *(
        f"{package}.{module}"
        for package in ("httpcore", "httpcore2")
        for module in ("connection", "http11", "http2", "proxy", "socks")
    ),
)

_secrets: ContextVar[tuple[str, ...]] = ContextVar("baas_auth_secrets", default=())


class _Redact(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        secrets = _secrets.get()
        if secrets and record.name.startswith("hpack"):
            return False  # it logs encoded headers, in which no search finds a token
        if secrets:
            message = record.getMessage()
            for secret in secrets:
                message = message.replace(secret, "***")
            record.msg, record.args = message, ()
        return True


_redact = _Redact()


@contextmanager
def redacted_logs(*secrets: str) -> Iterator[None]:
    """Redact these strings, raw or percent-encoded, in what the HTTP libraries log in this context."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_redact)
    forms = {form for secret in secrets for form in (secret, quote(secret, safe="")) if form}
    reset = _secrets.set((*_secrets.get(), *sorted(forms, key=len, reverse=True)))
    try:
        yield
    finally:
        _secrets.reset(reset)
