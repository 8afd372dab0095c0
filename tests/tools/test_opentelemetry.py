"""OpenTelemetry's instrumentation of requests and httpx: spans and headers, and no secret in them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import CLIENTS, SECRET, Client
from raw_gateway import RawGateway

from baas_auth_plugins import AvistaAuth, AxiaAuth, MemoryTokenCache

pytest.importorskip("opentelemetry.instrumentation.requests")
pytest.importorskip("opentelemetry.instrumentation.httpx")
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

pytestmark = pytest.mark.timeout(60)

INSTRUMENTED = [client for client in CLIENTS if client.module.__name__ in ("requests", "httpx")]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Instrument both clients, and keep their spans."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentors: list[Any] = [RequestsInstrumentor(), HTTPXClientInstrumentor()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    yield exporter
    for instrumentor in instrumentors:
        instrumentor.uninstrument()


@pytest.fixture(params=[AxiaAuth, AvistaAuth], ids=lambda c: c.provider.name)
def gateway(request: pytest.FixtureRequest) -> Iterator[RawGateway]:
    with RawGateway(request.param) as gateway:
        yield gateway


@pytest.mark.parametrize("client", INSTRUMENTED, ids=lambda client: client.name)
def test_calls_are_traced_and_healed(client: Client, gateway: RawGateway, spans: InMemorySpanExporter) -> None:
    """Under instrumentation a cold call, a revocation and its replay work, and no span holds the secret or a token."""
    auth = gateway.auth_class("traced", SECRET, base_url=gateway.url, cache=MemoryTokenCache())
    with client.open(auth) as send:
        assert send("GET", gateway.url + "/a").status == 200
        gateway.valid.clear()
        assert send("GET", gateway.url + "/a").status == 200
    assert gateway.count("token") == 2
    finished = spans.get_finished_spans()
    assert len(finished) >= 3  # a replay of requests goes over the adapter, as with HTTPDigestAuth
    text = "".join(f"{span.name} {dict(span.attributes or {})} {span.events}" for span in finished)
    for secret in (SECRET, "token-1", "token-2", base64.b64encode(f"traced:{SECRET}".encode()).decode()):
        assert secret not in text
    assert all("traceparent" in exchange.headers for exchange in gateway.api[:1])


@pytest.mark.parametrize("client", INSTRUMENTED, ids=lambda client: client.name)
def test_a_traced_outage_is_a_typed_error(client: Client, gateway: RawGateway, spans: InMemorySpanExporter) -> None:
    """A refused token request under instrumentation is the same error as without."""
    from raw_gateway import http

    gateway.on_token = lambda exchange: http(403, b"{}")
    auth = gateway.auth_class("traced-403", SECRET, base_url=gateway.url, cache=MemoryTokenCache())
    with pytest.raises(client.error) as caught:
        client.call(auth, "GET", gateway.url + "/a")
    assert getattr(caught.value, "status_code", None) == 403


def test_get_token_is_traced(gateway: RawGateway, spans: InMemorySpanExporter) -> None:
    """The private session is instrumented like any other."""
    auth = gateway.auth_class("traced-get", SECRET, base_url=gateway.url, cache=MemoryTokenCache())
    assert auth.get_token().access_token == "token-1"
    assert len(spans.get_finished_spans()) == 1
