"""Keeping a token that must travel in a URL out of the logs that show URLs.

httpx logs every URL at INFO, urllib3 at DEBUG, and hpack every header. A filter on those very loggers
(a filter is not asked about its children's records) blanks what the current call wants hidden,
and touches nothing of anybody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import quote

__all__ = ["hidden_from_logs"]

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

_hidden: ContextVar[tuple[str, ...]] = ContextVar("baas_auth_hidden", default=())


class _Blank(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        hidden = _hidden.get()
        if hidden and record.name.startswith("hpack"):
            return False  # it logs headers encoded, where no search would find a token
        if hidden:
            message = record.getMessage()
            for secret in hidden:
                message = message.replace(secret, "***")
            record.msg, record.args = message, ()
        return True


_blank = _Blank()


@contextmanager
def hidden_from_logs(*secrets: str) -> Iterator[None]:
    """Blank these strings, raw or percent-encoded, in what HTTP libraries log in this context."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_blank)  # adding it again changes nothing
    forms = {form for secret in secrets for form in (secret, quote(secret, safe="")) if form}
    reset = _hidden.set((*_hidden.get(), *sorted(forms, key=len, reverse=True)))
    try:
        yield
    finally:
        _hidden.reset(reset)
