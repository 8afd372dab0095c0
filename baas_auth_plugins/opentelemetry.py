"""OpenTelemetry metrics of all auth objects in this process (extra ``otel``).

Names, units and attributes follow OpenTelemetry's semantic conventions; docs/how-to/observability.md lists them. A token
request counts once with its retries. The remaining life is that of tokens which this process requested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

try:
    from opentelemetry import metrics
except ImportError as _missing:
    raise ImportError("the metrics need opentelemetry-api: pip install 'baas-auth-plugins[otel]'") from _missing

from . import events

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider, Observation

__all__ = ["instrument"]

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)
_WAIT_BUCKETS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)

Attributes = dict[str, str | bool | int]


def instrument(meter_provider: MeterProvider | None = None) -> Callable[[], None]:
    """Record metrics of every auth object in this process, from now on.

    Call it once: a second call records everything twice.

    Args:
        meter_provider: where metrics go; the global one by default.

    Returns:
        A function that ends the recording.
    """
    recorder = _Recorder(metrics.get_meter("baas_auth_plugins", meter_provider=meter_provider))
    unsubscribe = events.subscribe(recorder)

    def uninstrument() -> None:
        unsubscribe()
        recorder.tokens.clear()

    return uninstrument


class _Recorder:
    """Turns each event into measurements."""

    def __init__(self, meter: Meter) -> None:
        def counter(name: str, unit: str, description: str) -> Counter:
            return meter.create_counter(f"baas_auth.{name}", unit, description)

        def histogram(name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
            name = f"baas_auth.{name}"
            return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=buckets)

        self.tokens: dict[tuple[str, str], float] = {}  # until when each client's latest token is valid
        self._requests = counter("token.requests", "{request}", "Token requests, each with its retries.")
        self._duration = histogram(
            "token.request.duration", "Duration of token requests, retries and waits included.", _BUCKETS
        )
        self._rejections = counter("token.rejections", "{rejection}", "Tokens to which the API answered 401.")
        self._replays = counter("request.replays", "{request}", "API requests sent again with another token.")
        self._stale_serves = counter("token.stale_serves", "{request}", "Calls that got a token due for renewal.")
        self._waits = counter("token.rate_limit.waits", "{wait}", "Rate limits met, at the gateway or on this side.")
        self._wait_duration = histogram(
            "token.rate_limit.wait.duration", "Time until the next token request, at a rate limit.", _WAIT_BUCKETS
        )
        meter.create_observable_gauge(
            "baas_auth.token.remaining_life", [self._remaining_life], "s", "Time until the latest token expires."
        )

    def __call__(self, event: events.Event) -> None:
        """Record one event."""
        attributes: Attributes = {"baas_auth.provider": event.provider}
        match event:
            case events.TokenMinted():
                self.tokens[event.provider, event.client_id] = time.monotonic() + event.expires_in
                attributes |= {"baas_auth.outcome": "success", "baas_auth.reason": event.reason}
                self._requests.add(1, attributes)
                self._duration.record(event.duration, attributes)
            case events.RenewalFailed():
                attributes |= {"baas_auth.outcome": "failure", "error.type": event.error}
                if event.status_code is not None:
                    attributes["http.response.status_code"] = event.status_code
                self._requests.add(1, attributes)
                self._duration.record(event.duration, attributes)
            case events.TokenRejected():
                attributes["baas_auth.replaying"] = event.replaying
                if event.reason is not None:
                    attributes["baas_auth.reason"] = event.reason
                self._rejections.add(1, attributes)
            case events.RequestReplayed():
                self._replays.add(1, attributes | {"http.response.status_code": event.status_code})
            case events.TokenServedStale():
                self._stale_serves.add(1, attributes)
            case events.RateLimited():
                self._waits.add(1, attributes)
                if event.retry_after is not None:
                    self._wait_duration.record(event.retry_after, attributes)

    def _remaining_life(self, _: CallbackOptions) -> Iterable[Observation]:
        """Observe the valid tokens; forget the others."""
        now = time.monotonic()
        for (provider, client_id), until in list(self.tokens.items()):
            if until <= now:
                self.tokens.pop((provider, client_id), None)
                continue
            attributes = {"baas_auth.provider": provider, "baas_auth.client_id": client_id}
            yield metrics.Observation(until - now, attributes)
