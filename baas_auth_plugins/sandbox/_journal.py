"""What reached the gateways: every request, and how many token requests were in flight at once."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from itertools import count

from ._messages import Kind, RecordedRequest, Request

__all__ = ["Journal"]


class Journal:
    """The log of one sandbox. Not thread-safe by itself."""

    def __init__(self) -> None:
        self._numbers = count()
        self._records: dict[int, RecordedRequest] = {}
        self._in_flight: set[int] = set()
        self.max_in_flight = 0

    def begin(self, request: Request, kind: Kind, provider: str | None, status: int | None) -> int:
        """Record a request whose answer is known but not sent, and return its number."""
        number = next(self._numbers)
        self._records[number] = RecordedRequest(
            request.method,
            request.path,
            request.query,
            request.headers,
            request.body,
            kind,
            provider,
            status,
            time.monotonic(),
        )
        if kind == "token":
            self._in_flight.add(number)
            self.max_in_flight = max(self.max_in_flight, len(self._in_flight))
        return number

    def finish(self, number: int) -> None:
        """Note that the answer is about to be sent, or that nobody waits for it any more."""
        self._in_flight.discard(number)
        if record := self._records.get(number):
            self._records[number] = replace(record, finished=time.monotonic())

    def records(self) -> list[RecordedRequest]:
        """Return the requests so far, in order of arrival."""
        return list(self._records.values())

    def counts(self) -> Counter[tuple[str | None, str]]:
        """Return how many requests each (provider, kind) has had."""
        return Counter((record.provider, record.kind) for record in self._records.values())

    def clear(self) -> None:
        """Forget all requests."""
        self._records.clear()
        self.max_in_flight = len(self._in_flight)
