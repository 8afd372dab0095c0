"""The pages in docs/ hold: their examples run against the sandbox, and their pictures show the package's own rules."""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_examples import DOCS, ROOT, Page, page, pages, run_page, run_script

from baas_auth_plugins import Token
from baas_auth_plugins._oauth.token import Instant, Phase
from baas_auth_plugins.cli._exit_codes import ExitCode
from baas_auth_plugins.sandbox import Sandbox

pytestmark = pytest.mark.timeout(120)

NOT_RUN = {
    "docs/how-to/jupyter.md": ["a notebook awaits outside of a function"],
    "docs/migration/authlib.md": ["Authlib adds a charset to the content type, which the sandbox refuses"],
    "docs/migration/requests-oauth2client.md": ["requests-oauth2client wants https for its token endpoint"],
}
TESTED_ELSEWHERE = (
    "docs/gateways/",
    "docs/how-to/testing.md",
    "docs/how-to/mtls.md",
    "docs/how-to/other-clients.md",
    "docs/how-to/observability.md",
)
PAGES = [one for one in pages() if not one.name.startswith(TESTED_ELSEWHERE)]
HERE = [one for one in PAGES if not one.needs and "pt-BR" not in one.path.parts]
ELSEWHERE = [one for one in PAGES if one.needs]


def by_name(one: Page) -> str:
    return one.name


@pytest.fixture
def gateways() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.mark.parametrize("one", HERE, ids=by_name)
def test_the_examples_of_a_page_run(one: Page, gateways: Sandbox, tmp_path: Path) -> None:
    """Each Python block of a page runs against the sandbox, silently. Its tests pass under pytest."""
    run_page(one, gateways, tmp_path)


def test_what_is_not_run_is_known() -> None:
    """Each block that is not run says why, and is in this list."""
    found = {one.name: [block.not_run for block in one.examples if block.not_run] for one in PAGES}

    assert {name: reasons for name, reasons in found.items() if reasons} == NOT_RUN


def test_pages_that_need_a_framework_are_tested_with_the_tools() -> None:
    """What a page needs beyond the test extra is installed for tests/tools, where the page runs."""
    requirements = (ROOT / "tests" / "tools" / "requirements.txt").read_text(encoding="utf-8").replace("-", "_")

    assert ELSEWHERE
    assert [name for one in ELSEWHERE for name in one.needs if f"\n{name}>=" not in requirements.lower()] == []


@pytest.mark.parametrize(
    "drawn", list(runpy.run_path(str(DOCS / "pictures" / "draw.py"))["pictures"]()), ids=lambda drawn: drawn[0].name
)
def test_a_picture_is_up_to_date(drawn: tuple[Path, str]) -> None:
    """Each picture that is drawn by the script is what the script draws."""
    path, content = drawn

    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("lifetime", [3600, 420, 300])
def test_the_timeline_is_the_packages(lifetime: float) -> None:
    """At the ages in the picture a token changes its phase, and not a moment before."""
    boundaries = runpy.run_path(str(DOCS / "pictures" / "draw.py"))["boundaries"]
    token = Token("a-token", "Bearer", frozenset(), 0.0, lifetime, 0.0)

    for age, phase in zip(boundaries(lifetime), (Phase.STALE, Phase.CRITICAL, Phase.EXPIRED), strict=True):
        before, at = Instant(age - 0.001, age - 0.001), Instant(age, age)
        assert (token.phase(before, 300), token.phase(at, 300)) == (phase - 1, phase)


def test_before_and_after_fetch_the_same(gateways: Sandbox) -> None:
    """Axia's BaaSClient and the one `session.auth` line get the same accounts from the gateway."""
    codes = [block.code for block in page(DOCS / "migration" / "samples.md").examples]
    before, after = (ast.literal_eval(run_script(code, gateways).stdout) for code in codes)

    assert before.pop("content_type") == "application/json"  # which the page's client sends with a GET
    assert after.pop("content_type") is None
    assert before == after
    assert before["path"] == "/v1/accounts"
    assert codes[1].count("session.auth = ") == 1


TWINS = [
    (ROOT / "README.md", ROOT / "README.pt-BR.md"),
    (DOCS / "tutorial.md", DOCS / "pt-BR" / "tutorial.md"),
    (DOCS / "errors.md", DOCS / "pt-BR" / "errors.md"),
]


@pytest.mark.parametrize("twins", TWINS, ids=lambda twins: twins[0].name)
def test_the_portuguese_twin_keeps_step(twins: tuple[Path, Path]) -> None:
    """English and Portuguese pages have the same headings by level, the same code and the same rows in tables."""
    english, portuguese = map(page, twins)

    assert [block.code for block in english.blocks if block.language in ("python", "sh", "")] == [
        block.code for block in portuguese.blocks if block.language in ("python", "sh", "")
    ]
    assert _levels(english) == _levels(portuguese)
    assert sum(line.startswith("|") for line in english.text.splitlines()) - _benchmark_rows(english) == sum(
        line.startswith("|") for line in portuguese.text.splitlines()
    )


def _levels(one: Page) -> list[int]:
    text = one.text
    for block in one.blocks:
        text = text.replace(block.code, "")
    return [len(line) - len(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")]


def _benchmark_rows(one: Page) -> int:
    table = one.text.partition("<!-- benchmarks -->")[2].partition("<!-- /benchmarks -->")[0]
    return sum(line.startswith("|") for line in table.splitlines())


def test_needs_are_importable_names() -> None:
    """A page's needs are modules, so that a page is not skipped for a typing error."""
    assert all(name.isidentifier() for one in PAGES for name in one.needs)


def test_the_figures_of_the_comparison_are_those_of_the_run() -> None:
    """Each figure in the text of the comparison comes from benchmarks/results."""
    results = json.loads((ROOT / "benchmarks" / "results" / "results.json").read_text(encoding="utf-8"))
    tables = {table["name"]: {row["label"]: row["values"] for row in table["rows"]} for table in results["tables"]}
    text = " ".join((DOCS / "explanation" / "comparison.md").read_text(encoding="utf-8").split())

    def figure(table: str, label: str, column: str) -> float:
        return tables[table][label][column]

    ours, by_hand = "baas-auth-plugins", "by hand: snapshot, two clocks, origin check, 401 hook"
    hook = {
        label: f"{values['× static']:.1f} ×" for label, values in tables["hot-path-hook"].items() if values["× static"]
    }
    scale, delayed = "× one token request and the static run", "calls delayed per renewal"
    for words in (
        f"{figure('per-hour', 'five-minute buffer', '300 s'):,} token requests in an hour with one call a second,"
        f" against {figure('per-hour', ours, '300 s')}",
        f"{hook[by_hand]} in requests' hook, against {hook[ours]}",
        f"delays all {figure('rollover', by_hand, delayed):.0f} threads at a renewal, against one",
        f"made {figure('storm-threads', 'google-auth', 'token requests')} token requests,"
        f" against {figure('storm-threads', ours, 'token requests')}",
        f"{hook['msal']} and {figure('hot-path-flow', 'msal', '× static'):.1f} ×",
        f"take {figure('stampede-tasks-10000', ours, scale):.1f} times as long",
        f"takes {figure('imports-time', 'baas-auth-plugins, with httpx2', '× requests, httpx'):.1f} times",
    ):
        assert words in text
    assert figure("rollover", ours, delayed) == 1


PUBLIC = (
    "baas_auth_plugins",
    "baas_auth_plugins.cache.redis",
    "baas_auth_plugins.client_auth",
    "baas_auth_plugins.events",
    "baas_auth_plugins.exceptions",
    "baas_auth_plugins.opentelemetry",
    "baas_auth_plugins.sandbox",
    "baas_auth_plugins.testing",
)


@pytest.mark.parametrize("module", PUBLIC)
def test_the_reference_has_every_public_name(module: str) -> None:
    """Each name in the module's `__all__` has an entry in docs/reference, by itself or with its whole module."""
    reference = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
    entries = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", reference, re.MULTILINE))
    described = {entry.rpartition(".")[2] for entry in entries}

    assert module in entries or set(importlib.import_module(module).__all__) - described == set()


def test_the_reference_has_every_exit_code() -> None:
    """Each exit code of the command line, with its meaning, is on its page."""
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")

    assert [code for code in ExitCode if f"| {code.value} | {code.meaning} |" not in text] == []
