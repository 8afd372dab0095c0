"""The how-to pages: every Python example runs as it stands, against the sandbox."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from baas_auth_plugins import PROVIDERS, events
from baas_auth_plugins import opentelemetry as otel
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(120)

HERE = Path(__file__).parent
PAGES = {
    name: (HERE.parent / "docs" / "how-to" / f"{name}.md").read_text() for name in ("observability", "other-clients")
}


def examples(page: str) -> list[pytest.param]:
    """Return the page's examples, named after their headings."""
    found = []
    for section in re.split(r"^## ", PAGES[page], flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0].lower().replace(" ", "-")
        blocks = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
        found += [pytest.param(code, id=f"{title}-{number}") for number, code in enumerate(blocks)]
    return found


@pytest.fixture
def gateways() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def run(code: str, gateways: Sandbox) -> subprocess.CompletedProcess[str]:
    """Run an example as a script, with the sandbox in place of the production hosts."""
    variables = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    for cls in PROVIDERS:
        variables |= gateways.environment(cls)
        code = code.replace(cls.provider.environments["production"], gateways.url)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=variables | {"PYTHONPATH": str(HERE), "PYTHONIOENCODING": "utf-8"},
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.mark.parametrize("code", examples("observability"))
def test_the_examples_of_observability(code: str, gateways: Sandbox) -> None:
    """Each example runs silently, and what it asserts holds."""
    result = run(code, gateways)
    assert (result.stderr, result.returncode) == ("", 0)
    if "print(" in code:
        assert re.fullmatch(r"axia TokenMinted [0-9a-f]{8}\n", result.stdout)


@pytest.mark.parametrize("rejected", [False, True], ids=["accepted", "rejected"])
@pytest.mark.parametrize("code", examples("other-clients"))
def test_the_examples_of_other_clients(code: str, rejected: bool, gateways: Sandbox) -> None:
    """Each client's call succeeds, also after one 401, which costs one token request and one call more."""
    if rejected:
        gateways.inject(Fault("status", "api", status=401))
    result = run(code, gateways)
    assert (result.stderr, result.returncode) == ("", 0)
    assert [(request.kind, request.status) for request in gateways.requests if request.kind == "api"] == [
        *([("api", 401)] if rejected else []),
        ("api", 200),
    ]
    assert gateways.count("token") == 1 + rejected


def test_the_table_of_events_is_true() -> None:
    """The page lists every event, with all of its fields."""
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.*) \|$", PAGES["observability"], re.MULTILINE))
    kinds = [getattr(events, name) for name in events.__all__ if name not in ("Event", "subscribe")]
    assert set(rows) == {kind.__name__ for kind in kinds}
    for kind in kinds:
        fields = set(kind.__dataclass_fields__) - set(events.Event.__dataclass_fields__)
        assert fields <= set(re.findall(r"`(\w+)`", rows[kind.__name__]))


def test_the_table_of_metrics_is_true() -> None:
    """The page lists every metric that `instrument` makes, with its unit."""
    made: dict[str, str] = {}

    class Meter:
        def create_counter(self, name: str, unit: str, *_: object) -> None:
            made[name] = unit

        def create_histogram(self, name: str, unit: str, *_: object, **__: object) -> None:
            made[name] = unit

        def create_observable_gauge(self, name: str, callbacks: object, unit: str, *_: object) -> None:
            made[name] = unit

    otel._Recorder(Meter())
    rows = dict(re.findall(r"^\| `(baas_auth\.[\w.]+)` \| [\w ]+, `(.+?)` \|", PAGES["observability"], re.MULTILINE))
    assert rows == made


def test_prometheus_takes_ten_lines() -> None:
    """The Prometheus example is ten lines long, without imports, blank lines and the check."""
    (code,) = (param.values[0] for param in examples("observability") if "prometheus_client" in str(param.values[0]))
    lines = [line for line in str(code).partition("AxiaAuth.from_env")[0].splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 10
