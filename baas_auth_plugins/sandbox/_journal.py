"""What reached the gateways: the latest requests, all counts, and how many token requests were in flight at once."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from dataclasses import replace

from ._messages import Kind, RecordedRequest, Request, Response

__all__ = ["Journal"]

_MOST_RECORDS = 10_000
_MOST_BYTES = 64 << 20  # bodies of all records together


class Journal:
    """The log of one sandbox, which forgets the oldest requests first. Not thread-safe by itself."""

    def __init__(self) -> None:
        self.last = 0
        self._records: OrderedDict[int, RecordedRequest] = OrderedDict()
        self._counts: Counter[tuple[str | None, str]] = Counter()
        self._bytes = 0
        self._in_flight: set[int] = set()
        self.max_in_flight = 0

    def begin(self, request: Request, kind: Kind, provider: str | None, response: Response, at: float) -> int:
        """Record a request whose answer is known but not sent, and return its number."""
        self.last = number = self.last + 1
        self._records[number] = RecordedRequest(
            request.method,
            request.path,
            request.query,
            request.headers,
            request.body,
            kind,
            provider,
            response.status,
            time.monotonic(),
            number=number,
            at=at,
            problem=response.problem,
            fault=response.fault,
        )
        self._counts[provider, kind] += 1
        self._bytes += len(request.body)
        while len(self._records) > _MOST_RECORDS or (self._bytes > _MOST_BYTES and len(self._records) > 1):
            _, oldest = self._records.popitem(last=False)
            self._bytes -= len(oldest.body)
        if kind == "token":
            self._in_flight.add(number)
            self.max_in_flight = max(self.max_in_flight, len(self._in_flight))
        return number

    def finish(self, number: int) -> RecordedRequest | None:
        """Note that the answer is about to be sent, or that its client is gone, and return the record."""
        self._in_flight.discard(number)
        if record := self._records.get(number):
            self._records[number] = record = replace(record, finished=time.monotonic())
        return record

    @property
    def first(self) -> int:
        """The number of the oldest request that is kept, or the next number if none is."""
        return next(iter(self._records), self.last + 1)

    def records(self, after: int = 0) -> list[RecordedRequest]:
        """Return the latest requests with a higher number than `after`, in order of arrival."""
        return [record for number, record in self._records.items() if number > after]

    def counts(self) -> Counter[tuple[str | None, str]]:
        """Return how many requests each (provider, kind) has had, including those that are forgotten."""
        return self._counts.copy()

    def clear(self) -> None:
        """Forget all requests."""
        self._records.clear()
        self._counts.clear()
        self._bytes = 0
        self.max_in_flight = len(self._in_flight)
