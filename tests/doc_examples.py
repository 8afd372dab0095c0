"""The examples of the documentation: what a page holds, and how its Python blocks run against the sandbox.

A Python block is a script, unless a comment above it says otherwise:

- ``<!-- file: app.py -->``: a file that later blocks of the page import. Files named ``test_*.py`` run under pytest.
- ``<!-- not run: reason -->``: not run. The test keeps the list of these.

``<!-- page needs: module -->`` anywhere: the page runs only where these modules are installed, in tests/tools.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis_servers import LOOPBACK, RedisServer

from baas_auth_plugins import PROVIDERS
from baas_auth_plugins.sandbox import Sandbox

__all__ = ["DOCS", "ROOT", "Block", "Page", "pages", "run_page", "run_script"]

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
STUBS = Path(__file__).parent / "doc_stubs"
"""Stand-ins for vaults: modules that answer as the sandbox's secret."""

_BLOCK = re.compile(
    r"(?:^[ ]*<!--[ ](?P<marker>file|not[ ]run):[ ](?P<value>.*?)[ ]-->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<language>[^\s`]*)[^`\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.DOTALL | re.MULTILINE,
)
_NEEDS = re.compile(r"<!-- page needs: (.*?) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    code: str
    file: str | None = None
    not_run: str | None = None


@dataclass(frozen=True)
class Page:
    """One page, with its blocks."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def needs(self) -> list[str]:
        """The modules without which its examples cannot run."""
        return [name.strip() for found in _NEEDS.findall(self.text) for name in found.split(",")]

    @property
    def blocks(self) -> list[Block]:
        """All fenced blocks, in their order."""
        return [
            Block(
                found["language"],
                re.sub(f"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
                found["value"] if found["marker"] == "file" else None,
                found["value"] if found["marker"] == "not run" else None,
            )
            for found in _BLOCK.finditer(self.text)
        ]

    @property
    def examples(self) -> list[Block]:
        """The Python blocks."""
        return [block for block in self.blocks if block.language == "python"]


def page(path: Path) -> Page:
    return Page(path, path.read_text(encoding="utf-8"))


def pages() -> list[Page]:
    """Return all pages below docs/ that have Python blocks, but those of the built site."""
    found = (page(path) for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts)
    return [one for one in found if one.examples]


def variables(gateways: Sandbox) -> dict[str, str]:
    """Return the environment of an example: no proxy, and each gateway's variables for the sandbox."""
    found = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    for cls in PROVIDERS:
        prefix = cls.provider.env_prefix
        found[f"{prefix}_CLIENT_ID"] = gateways.client_id
        found[f"{prefix}_CLIENT_SECRET"] = gateways.client_secret
        found[f"{prefix}_BASE_URL"] = gateways.url
    return found | {"PYTHONIOENCODING": "utf-8", "SANDBOX_URL": gateways.url}


def on_sandbox(code: str, gateways: Sandbox) -> str:
    """Return an example with the sandbox in the place of the production hosts."""
    for cls in PROVIDERS:
        code = code.replace(cls.provider.environments["production"], gateways.url)
    return code


def run_script(
    code: str, gateways: Sandbox, *, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run an example as a script of its own."""
    arguments = ["-W", "error", "-c", on_sandbox(code, gateways)]
    return _python(arguments, folder, variables(gateways) | environment)


def run_page(one: Page, gateways: Sandbox, folder: Path) -> None:
    """Run the examples of a page in their order, and its tests at the end. Each must be silent and succeed."""
    environment, server = {"PYTHONPATH": os.pathsep.join((str(folder), str(STUBS)))}, None
    secret = folder / "client_secret.txt"
    secret.write_text(f"{gateways.client_secret}\n", encoding="utf-8")
    environment["BAAS_CLIENT_SECRET_FILE"] = str(secret)
    if "REDIS_URL" in one.text:
        server = RedisServer(folder).start()
        environment["REDIS_URL"] = f"redis://{LOOPBACK}:{server.port}"
    try:
        tests = list(_run_blocks(one, gateways, folder, environment))
        if tests:
            _run_tests(tests, folder, environment)
    finally:
        if server is not None:
            server.kill()


def _run_blocks(one: Page, gateways: Sandbox, folder: Path, environment: dict[str, str]) -> Iterable[str]:
    for block in one.examples:
        if block.not_run is not None:
            continue
        if block.file is not None:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.code, encoding="utf-8")
            if Path(block.file).name.startswith("test_"):
                yield block.file
            continue
        result = run_script(block.code, gateways, folder=folder, **environment)
        assert (result.stderr, result.returncode) == ("", 0), f"{one.name}:\n{block.code}"


def _run_tests(tests: list[str], folder: Path, environment: dict[str, str]) -> None:
    plugins = {found.value for found in importlib.metadata.entry_points(group="pytest11")}
    if "baas_auth_pytest" not in plugins:
        pytest.skip("the pytest plugin of this package is not installed")
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(folder), *tests]
    clean = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    result = _python(arguments, folder, clean | environment)
    assert result.returncode == 0, result.stdout + result.stderr


def _python(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        cwd=folder,
    )
