"""What importing the package costs in a fresh interpreter, and which part of it costs how much.

The clock is CPU time, and runs around the import statement alone: the interpreter's own start would only make
the ratios smaller. Whoever imports the package has requests and httpx, so these two are 1.00.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from tempfile import TemporaryDirectory

from .contestants import CONTESTANTS as ALL
from .contestants import Unsupported, ready
from .measure import median_ratio
from .report import Bar, Column, Missing, Options, Row, Table, Value, missing_row

NAME = "imports"

COLUMNS = (Column("median, ms", 1), Column("least, ms", 1), Column("× requests, httpx", 2, chart=True))
PARTS = (Column("modules"), Column("own time, ms", 1))
FOUND = (Column("imported"),)

BASE = "import requests, httpx"
OURS = "import baas_auth_plugins"
_PEERS = {
    "Authlib": "import requests, httpx, authlib.integrations.requests_client, authlib.integrations.httpx_client",
    "requests-oauth2client": f"{BASE}, requests_oauth2client",
    "httpx-auth": f"{BASE}, httpx_auth",
    "google-auth": f"{BASE}, google.auth.credentials, google.auth.transport.requests",
    "msal": f"{BASE}, msal",
}
_WITHOUT_HTTPX2 = "import sys; sys.modules['httpx2'] = None"
_WITH_HTTPX2 = "import sys"
_TIMED = """{setting}
import warnings; warnings.simplefilter("ignore")
from time import process_time
started = process_time()
{statement}
print(process_time() - started)
"""
_UNWANTED = ("baas_auth_plugins.sandbox", "baas_auth_plugins.cli", "redis", "opentelemetry", "cryptography")
_MUST_NOT = _UNWANTED[:4]
_TRACED = re.compile(r"import time:\s+(\d+) \|\s+\d+ \| *(\S+)")
_GROUPS = ("baas_auth_plugins", "authlib", "cachetools", "cryptography", "joserfc", "httpx2", "httpcore2", "asyncio")


def run(options: Options) -> list[Table]:
    """Measure imports, take them apart, and look for modules that have no business there."""
    with TemporaryDirectory() as bytecode:
        python = _Python(bytecode)
        has_httpx2 = python.imports("import httpx2")
        return [
            _times(python, options.pick(25, 3), has_httpx2),
            *([_parts(python, options.pick(7, 1), True)] if has_httpx2 else []),
            _parts(python, options.pick(7, 1), False),
            _unwanted(python),
        ]


class _Python:
    """Fresh interpreters that share a cache of bytecode, whatever this one was told about .pyc files.

    Args:
        bytecode: the folder of the cache.
    """

    def __init__(self, bytecode: str) -> None:
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._environment["PYTHONPYCACHEPREFIX"] = bytecode

    def __call__(self, code: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run some code that must succeed."""
        finished = self._run(code, *options)
        finished.check_returncode()
        return finished

    def imports(self, statement: str) -> bool:
        """Tell whether an import succeeds."""
        return self._run(statement).returncode == 0

    def _run(self, code: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *options, "-c", code]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=self._environment
        )  # our own code


def _times(python: _Python, rounds: int, has_httpx2: bool) -> Table:
    statements = {
        "requests, httpx": (_WITHOUT_HTTPX2, BASE),
        "requests, httpx, httpx2": (_WITH_HTTPX2, f"{BASE}, httpx2"),
        "baas-auth-plugins, without httpx2": (_WITHOUT_HTTPX2, OURS),
        "baas-auth-plugins, with httpx2": (_WITH_HTTPX2, OURS),
        **{name: (_WITHOUT_HTTPX2, statement) for name, statement in _PEERS.items()},
    }
    missing = {name: "httpx2 is not installed" for name, (setting, _) in statements.items() if setting == _WITH_HTTPX2}
    missing = {} if has_httpx2 else missing
    for contestant in ALL:
        try:
            ready(contestant)
        except Unsupported as reason:
            missing[contestant.name] = str(reason)
    samples: dict[str, list[float]] = {name: [] for name in statements if name not in missing}
    for _ in range(rounds + 1):
        for name, values in samples.items():
            setting, statement = statements[name]
            values.append(float(python(_TIMED.format(setting=setting, statement=statement)).stdout) * 1e3)
    samples = {name: values[1:] for name, values in samples.items()}  # the first wrote .pyc files
    ratios = {name: median_ratio(values, samples["requests, httpx"]) for name, values in samples.items()}
    rows = tuple(
        Row(name, (statistics.median(samples[name]), min(samples[name]), ratios[name]))
        if name in samples
        else missing_row(name, COLUMNS, missing[name])
        for name in statements
    )
    bars = [Bar("import without httpx2, × requests, httpx", ratios["baas-auth-plugins, without httpx2"], 1.15)]
    if has_httpx2:
        bars.append(Bar("import with httpx2, × requests, httpx", ratios["baas-auth-plugins, with httpx2"], 1.25))
    note = "CPU time of the import statement, in fresh interpreters that take turns. A peer's figure has requests and httpx in it."
    return Table(f"{NAME}-time", "Import time", COLUMNS, rows, note, tuple(bars))


def _parts(python: _Python, rounds: int, with_httpx2: bool) -> Table:
    """Group the own times of all modules that the package brings beyond requests and httpx."""
    setting = _WITH_HTTPX2 if with_httpx2 else _WITHOUT_HTTPX2
    code = f"{setting}; {BASE}\nprint('loaded', file=sys.stderr)\n{OURS}"
    times: dict[str, list[float]] = defaultdict(list)
    modules: dict[str, set[str]] = defaultdict(set)
    python(code)  # writes the bytecode
    for _ in range(rounds):
        spent: dict[str, float] = defaultdict(float)
        for microseconds, module in _TRACED.findall(python(code, "-X", "importtime").stderr.partition("loaded")[2]):
            top = module.partition(".")[0]
            group = top if top in _GROUPS else "other modules"
            spent[group] += int(microseconds) / 1e3
            modules[group].add(module)
        for group, milliseconds in spent.items():
            times[group].append(milliseconds)
    rows = [Row(group, (len(modules[group]), min(values))) for group, values in times.items()]
    rows.sort(key=lambda row: -float(str(row.values[1])))
    others = ", ".join(sorted(name for name in modules["other modules"] if "." not in name and name[0] != "_"))
    rows.append(Row("all", (sum(len(names) for names in modules.values()), sum(map(min, times.values())))))
    which = "with" if with_httpx2 else "without"
    note = f"The least of {rounds} runs with `-X importtime`, which takes time itself; beyond what requests and httpx import. Other modules: {others}."
    return Table(f"{NAME}-parts-{which}-httpx2", f"What the import costs, {which} httpx2", PARTS, tuple(rows), note)


def _unwanted(python: _Python) -> Table:
    loaded = python(f"import sys; {OURS}\nprint(*sys.modules)").stdout.split()
    counts = {name: sum(m == name or m.startswith(f"{name}.") for m in loaded) for name in _UNWANTED}
    rows: list[Row] = []
    for name, count in counts.items():
        value: Value = count
        if not count and not name.startswith("baas_auth_plugins") and not python.imports(f"import {name}"):
            value = Missing("not installed, so it could not have been imported")
        rows.append(Row(name, (value,)))
    bars = (Bar("modules of sandbox, cli, redis and opentelemetry imported", sum(counts[n] for n in _MUST_NOT), 0, 0),)
    return Table(
        f"{NAME}-unwanted", "Modules imported that should wait until they are used", FOUND, tuple(rows), "", bars
    )
