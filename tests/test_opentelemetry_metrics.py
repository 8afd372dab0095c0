"""`baas_auth_plugins.opentelemetry`: what `instrument()` records, read by the SDK's in-memory reader."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from conftest import FakeClock, api_url, make
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from baas_auth_plugins import AxiaAuth, BS2Auth, NTXPayAuth, RateLimitError, TokenEndpointError
from baas_auth_plugins.opentelemetry import instrument
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)

Points = dict[tuple[Any, ...], Any]


class Metrics:
    """Instrumented auth objects, and what was recorded of them."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider([self._reader])
        self.uninstrument = instrument(self._provider)

    def read(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        (scope,) = data.resource_metrics[0].scope_metrics
        assert scope.scope.name == "baas_auth_plugins"
        return {metric.name: metric for metric in scope.metrics}

    def points(self, name: str) -> Points:
        """Return the points of a metric by their attributes; of a histogram the count and the sum."""
        metric = self.read().get(name)
        return {} if metric is None else {key(point): value(point) for point in metric.data.data_points}

    def close(self) -> None:
        self.uninstrument()
        self._provider.shutdown()


def key(point: Any) -> tuple[Any, ...]:
    return tuple(sorted((name.removeprefix("baas_auth."), value) for name, value in point.attributes.items()))


def value(point: Any) -> Any:
    return point.value if hasattr(point, "value") else (point.count, pytest.approx(point.sum, abs=0.01))


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.close()


def success(provider: str, reason: str) -> tuple[Any, ...]:
    return (("outcome", "success"), ("provider", provider), ("reason", reason))


def test_token_requests_by_provider_reason_and_outcome(clock: FakeClock, sandbox: Sandbox, metrics: Metrics) -> None:
    """Each token request counts once with its retries, under its reason; a failure under its error and status."""
    auth = make(AxiaAuth, sandbox)
    sandbox.inject(Fault("status", status=503))
    auth.get_token()
    retried = sum(clock.slept)
    clock.advance(3310)
    auth.get_token()
    make(NTXPayAuth, sandbox).get_token()
    auth.invalidate()
    sandbox.inject(Fault("status", status=401))
    with pytest.raises(TokenEndpointError):
        auth.get_token()
    failure = (
        ("error.type", "InvalidClientError"),
        ("http.response.status_code", 401),
        ("outcome", "failure"),
        ("provider", "axia"),
    )
    assert metrics.points("baas_auth.token.requests") == {
        success("axia", "cold"): 1,
        success("axia", "due"): 1,
        success("ntxpay", "cold"): 1,
        failure: 1,
    }
    assert metrics.points("baas_auth.token.request.duration") == {
        success("axia", "cold"): (1, retried),
        success("axia", "due"): (1, 0),
        success("ntxpay", "cold"): (1, 0),
        failure: (1, 0),
    }


def test_a_failure_without_an_answer_has_no_status(clock: FakeClock, sandbox: Sandbox, metrics: Metrics) -> None:
    """Where no answer came there is the error's type alone."""
    sandbox.inject(Fault("drop", times=-1))
    with pytest.raises(TokenEndpointError):
        make(AxiaAuth, sandbox).get_token()
    (point,) = metrics.points("baas_auth.token.requests")
    assert point == (("error.type", "TokenEndpointUnavailableError"), ("outcome", "failure"), ("provider", "axia"))


def test_rejections_and_replays(sandbox: Sandbox, metrics: Metrics) -> None:
    """A 401 that is healed is a rejection and a replay; one that is returned is a rejection with its reason."""
    auth, url = make(AxiaAuth, sandbox), api_url(AxiaAuth, sandbox)
    auth.get_token()
    sandbox.revoke()
    assert requests.get(url, auth=auth, timeout=5).status_code == 200
    sandbox.inject(Fault("status", "api", status=401))
    assert requests.post(url, data=iter([b"x"]), auth=auth, timeout=5).status_code == 401
    assert metrics.points("baas_auth.token.rejections") == {
        (("provider", "axia"), ("replaying", True)): 1,
        (("provider", "axia"), ("reason", "body"), ("replaying", False)): 1,
    }
    assert metrics.points("baas_auth.request.replays") == {
        (("http.response.status_code", 200), ("provider", "axia")): 1
    }


def test_stale_serves(clock: FakeClock, sandbox: Sandbox, metrics: Metrics) -> None:
    """A call that gets a token which is due for renewal counts."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    clock.advance(3310)
    sandbox.inject(Fault("status", status=503, times=-1))
    for _ in range(3):
        auth.get_token()
    assert metrics.points("baas_auth.token.stale_serves") == {(("provider", "axia"),): 3}


def test_rate_limit_waits(clock: FakeClock, new_sandbox: Callable[..., Sandbox], metrics: Metrics) -> None:
    """A 429 counts, with the wait that it asks for; so does the package's own limit."""
    sandbox = new_sandbox(enforce_rate_limits=False)
    sandbox.inject(Fault("status", status=429, retry_after=200))
    with pytest.raises(RateLimitError):
        make(AxiaAuth, sandbox).get_token()
    auth = make(BS2Auth, sandbox, max_wait=1)
    for _ in range(10):
        auth.invalidate()
        auth.get_token()
    auth.invalidate()
    with pytest.raises(RateLimitError):
        auth.get_token()
    axia, bs2 = (("provider", "axia"),), (("provider", "bs2"),)
    assert metrics.points("baas_auth.token.rate_limit.waits") == {axia: 1, bs2: 1}
    assert metrics.points("baas_auth.token.rate_limit.wait.duration") == {axia: (1, 200), bs2: (1, 60)}


def test_remaining_life(clock: FakeClock, new_sandbox: Callable[..., Sandbox], metrics: Metrics) -> None:
    """The gauge shows the seconds until each client's latest token expires, and nothing of an expired one."""
    one, other = new_sandbox(), new_sandbox()
    make(AxiaAuth, one).get_token()
    make(BS2Auth, other).get_token()
    clock.advance(100)
    axia = (("client_id", one.client_id), ("provider", "axia"))
    bs2 = (("client_id", other.client_id), ("provider", "bs2"))
    name = "baas_auth.token.remaining_life"
    assert metrics.points(name) == {axia: pytest.approx(3500, abs=1), bs2: pytest.approx(200, abs=1)}
    clock.advance(300)
    assert metrics.points(name) == {axia: pytest.approx(3200, abs=1)}


def test_names_and_units(clock: FakeClock, sandbox: Sandbox, metrics: Metrics) -> None:
    """Durations are seconds, with buckets for seconds; counts have a unit in braces."""
    make(AxiaAuth, sandbox).get_token()
    found = metrics.read()
    assert found["baas_auth.token.requests"].unit == "{request}"
    assert found["baas_auth.token.request.duration"].unit == found["baas_auth.token.remaining_life"].unit == "s"
    (point,) = found["baas_auth.token.request.duration"].data.data_points
    assert point.explicit_bounds[0] < 0.01 < 10 <= point.explicit_bounds[-1] <= 60
    assert all(metric.description for metric in found.values())


def test_no_secret_and_no_token(sandbox: Sandbox, metrics: Metrics) -> None:
    """No attribute has a secret, a token or its digest."""
    token = make(AxiaAuth, sandbox).get_token().access_token
    text = repr(metrics.read())
    assert sandbox.client_secret not in text
    assert token not in text


def test_uninstrument_ends_it(sandbox: Sandbox, metrics: Metrics) -> None:
    """After `uninstrument()` nothing is recorded any more, and a second call does no harm."""
    auth = make(AxiaAuth, sandbox)
    auth.get_token()
    before = metrics.points("baas_auth.token.requests")
    metrics.uninstrument()
    metrics.uninstrument()
    auth.invalidate()
    auth.get_token()
    assert metrics.points("baas_auth.token.requests") == before
    assert metrics.points("baas_auth.token.remaining_life") == {}


def test_the_global_provider_is_the_default() -> None:
    """Without an argument the metrics go to the global provider, also to one that is set later."""
    code = (
        "from opentelemetry.metrics import set_meter_provider; from opentelemetry.sdk.metrics import MeterProvider;"
        "from opentelemetry.sdk.metrics.export import InMemoryMetricReader; reader = InMemoryMetricReader();"
        "from baas_auth_plugins import AxiaAuth; from baas_auth_plugins.opentelemetry import instrument;"
        "from baas_auth_plugins.sandbox import Sandbox; instrument(); set_meter_provider(MeterProvider([reader]))\n"
        "with Sandbox() as s: AxiaAuth(s.client_id, s.client_secret, base_url=s.url).get_token()\n"
        "print([m.name for m in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "'baas_auth.token.requests'" in done.stdout


def test_nothing_is_imported_unless_used() -> None:
    """Importing the package imports no OpenTelemetry."""
    code = "import sys, baas_auth_plugins; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_without_the_extra_it_says_what_to_install() -> None:
    """Without opentelemetry-api the import fails with the command that installs it."""
    code = "import sys; sys.modules['opentelemetry'] = None; import baas_auth_plugins.opentelemetry"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: the metrics need opentelemetry-api: pip install 'baas-auth-plugins[otel]'"
    )
