"""The pages of docs/ that are about other people's frameworks and libraries: their examples run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_examples import Page, pages, run_page

from baas_auth_plugins.sandbox import Sandbox

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def gateways() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.mark.parametrize("one", [one for one in pages() if one.needs], ids=lambda one: one.name)
def test_the_examples_of_a_page_run(one: Page, gateways: Sandbox, tmp_path: Path) -> None:
    """Each Python block of a page runs against the sandbox, silently. Its tests pass under pytest."""
    for module in one.needs:
        pytest.importorskip(module)
    run_page(one, gateways, tmp_path)
