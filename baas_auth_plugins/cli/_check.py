"""``check``: get a token from each gateway, and report what it is good for, or what is wrong and what to do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from .. import Introspection, __version__
from ..exceptions import BaaSAuthError, TokenEndpointError
from ._exit_codes import ExitCode, advice, error_line, exit_code
from ._gateways import AuthClass, Settings
from ._output import fail, print_facts, print_json, waiting

__all__ = ["check", "session", "waits_for"]

_TIMEOUT = 10.0  # seconds; the package's default
_MAX_WAIT = 60.0  # seconds; likewise
_SKEW_TO_MEND = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer.

    Args:
        sent_at: epoch seconds.
        latency: seconds until the head of the answer.
        date: the answer's Date header.
    """

    sent_at: float
    latency: float
    date: str | None

    @property
    def skew(self) -> float | None:
        """Seconds by which the gateway's clock is ahead of this machine's, to half a second and half the latency."""
        try:
            date = parsedate_to_datetime(self.date or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            return None
        return date + 0.5 - (self.sent_at + self.latency / 2)  # Date is cut to whole seconds


class _Stopwatch(HTTPAdapter):
    """Notes how long each request takes, and what time it is at the gateway."""

    exchanges: list[Exchange]

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        sent_at, started = time.time(), time.perf_counter()
        response = super().send(request, *args, **options)
        self.exchanges.append(Exchange(sent_at, time.perf_counter() - started, response.headers.get("Date")))
        return response


def session(settings: Settings, exchanges: list[Exchange] | None = None) -> requests.Session:
    """Return a session for token requests.

    Args:
        settings: of the command line.
        exchanges: gets an entry for each answer.
    """
    opened = requests.Session()
    opened.cert = settings.client_certificate
    opened.headers["User-Agent"] = f"baas-auth-plugins/{__version__}"
    for scheme in ("https://", "http://"):
        stopwatch = _Stopwatch()
        stopwatch.exchanges = [] if exchanges is None else exchanges
        opened.mount(scheme, stopwatch)
    return opened


def waits_for(cls: AuthClass, settings: Settings) -> str:
    """Return what a token request waits for, and for how long at most.

    Args:
        cls: the gateway.
        settings: of the command line.
    """
    timeout = _TIMEOUT if settings.timeout is None else settings.timeout
    return (
        f"a token from {settings.origin(cls) or cls.provider.name}"
        f" (at most {timeout:g} s for a request, {_MAX_WAIT:g} s with retries)"
    )


@dataclass(slots=True, kw_only=True)
class Report:
    """The result of one check; None is not known. Times are seconds."""

    provider: str
    ok: bool = False
    exit_code: int = ExitCode.FAILED
    variables: list[str] = field(default_factory=list)
    origin: str | None = None
    expires_in: float | None = None
    scopes: list[str] | None = None
    latency: float | None = None
    attempts: int | None = None
    clock_skew: float | None = None
    introspection: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    problem: str | None = None

    def note(self, error: BaaSAuthError, prefix: str) -> None:
        """Record an error, with what to do about it."""
        self.exit_code = exit_code(error)
        self.problem = error_line(error, prefix)
        self.error = {
            "type": type(error).__name__,
            "message": str(error),
            "advice": advice(error, prefix),
            "status_code": getattr(error, "status_code", None),
            "error": getattr(error, "error", None),
            "retry_after": getattr(error, "retry_after", None),
        }

    def as_json(self) -> dict[str, Any]:
        """Return what a program reads."""
        return {name: value for name, value in asdict(self).items() if name != "problem"}

    def facts(self) -> dict[str, str | None]:
        """Return what there is to print."""
        facts = {
            "variables": ", ".join(self.variables) or "none",
            "gateway": self.origin,
            "lifetime": _number(self.expires_in, "g", " s"),
            "scopes": None if self.scopes is None else " ".join(self.scopes) or "the gateway names none",
            "latency": _number(self.latency, ".3f", " s"),
        }
        if self.expires_in is not None and self.attempts:
            facts["clock"] = _clock(self.clock_skew)
        if self.attempts is not None and self.attempts > 1:
            facts["attempts"] = str(self.attempts)
        if self.introspection is not None:
            facts["introspection"] = "active" if self.introspection["active"] else "not active"
        return facts


def _number(value: float | None, form: str, unit: str) -> str | None:
    return None if value is None else f"{value:{form}}{unit}"


def _clock(skew: float | None) -> str:
    if skew is None:
        return "unknown, because the answer has no Date"
    if abs(skew) < 2:
        return "agrees with the gateway's to 2 s"
    text = f"the gateway's is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}"
    return f"{text}; set this machine's clock" if abs(skew) > _SKEW_TO_MEND else text


def check(classes: Sequence[AuthClass], settings: Settings, *, as_json: bool) -> int:
    """Check some gateways.

    Args:
        classes: which.
        settings: of the command line.
        as_json: print one JSON array, instead of text.

    Returns:
        The exit code of the first check that failed, or 0.
    """
    reports = []
    for cls in classes:
        report = _check(cls, settings)
        reports.append(report)
        if not as_json:
            print_facts(report.facts(), title=f"{report.provider}: {'ok' if report.ok else 'not ok'}")
        if report.problem:
            fail(report.problem)
    if as_json:
        print_json([report.as_json() for report in reports])
    return next((report.exit_code for report in reports if not report.ok), ExitCode.OK)


def _check(cls: AuthClass, settings: Settings) -> Report:
    report = Report(provider=cls.provider.name)
    exchanges: list[Exchange] = []
    try:
        report.variables = list(settings.variables(cls))
        report.origin = settings.origin(cls)
        with session(settings, exchanges) as over:
            auth = settings.auth(cls, session=over)
            try:
                with waiting(waits_for(cls, settings)):
                    token = auth.get_token()
            finally:
                _note_exchanges(report, exchanges)
            report.expires_in = token.expires_in
            report.scopes = sorted(token.scopes)
            introspect = getattr(auth, "introspect", None)
            if introspect is not None:
                with waiting(f"the introspection at {report.origin}"):
                    _note_introspection(report, introspect(token))
    except BaaSAuthError as error:
        report.note(error, cls.provider.env_prefix)
    report.ok = report.error is None
    report.exit_code = ExitCode.OK if report.ok else report.exit_code
    return report


def _note_exchanges(report: Report, exchanges: list[Exchange]) -> None:
    report.attempts = len(exchanges)
    if exchanges:
        report.latency, report.clock_skew = exchanges[-1].latency, exchanges[-1].skew


def _note_introspection(report: Report, introspection: Introspection) -> None:
    report.introspection = {"active": introspection.active, "reason": introspection.reason}
    if not introspection.active:
        reason = introspection.reason or "the gateway does not say why"
        report.note(
            TokenEndpointError(f"{report.provider}: the gateway says that its new token is not active: {reason}"),
            report.provider,
        )
        report.exit_code = ExitCode.INACTIVE
