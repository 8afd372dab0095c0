"""What type checkers say of users' programs: `program.py` is right, and each marked line of `mistakes.py` is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

HERE = Path(__file__).parent
TOP = HERE.parent.parent

PYRIGHT = {"typeCheckingMode": "strict", "reportUnusedExpression": "none", "reportUnusedCoroutine": "none"}


def environment() -> dict[str, str]:
    """Return variables with which both checkers find this package, and what is installed here."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {
        "PATH": path,
        "PYTHONPATH": str(TOP),
        "MYPYPATH": str(TOP),
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }


def run(module: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment(),
        cwd=cwd,
        check=False,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(file: str, tmp_path: Path) -> dict[int, str]:
    """Return the lines of the file that mypy reports, with its words."""
    output = run(
        "mypy", "--strict", "--cache-dir", str(tmp_path), "--follow-imports=silent", str(HERE / file), cwd=tmp_path
    )
    return {int(line): text for line, text in re.findall(rf"{file}:(\d+): error: (.*)", output)}


def pyright(file: str, tmp_path: Path) -> dict[int, str]:
    """Return the lines of the file that pyright reports in strict mode, with its words."""
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(PYRIGHT | {"include": [file]}))
    (tmp_path / file).write_text((HERE / file).read_text())
    output = json.loads(run("pyright", "--outputjson", cwd=tmp_path))
    reports = [report for report in output["generalDiagnostics"] if report["severity"] == "error"]
    return {report["range"]["start"]["line"] + 1: report["message"] for report in reports}


@pytest.fixture(params=[mypy, pyright], ids=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest) -> object:
    if importlib.util.find_spec(request.param.__name__) is None:
        pytest.skip("is not installed: it is in the dependency group `check`")
    return request.param


def test_a_users_program_is_accepted(checker: object, tmp_path: Path) -> None:
    """Neither checker, each in its strict mode, finds anything in a program that is right."""
    assert checker("program.py", tmp_path) == {}  # type: ignore[operator]  # one of two functions


def test_mistakes_are_reported(checker: object, tmp_path: Path) -> None:
    """Both checkers report every marked line of a program that is wrong, and no other line."""
    lines = (HERE / "mistakes.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# mistake")}
    reported = checker("mistakes.py", tmp_path)  # type: ignore[operator]  # one of two functions
    assert {n: lines[n - 1] for n in marked ^ set(reported)} == {}


def test_every_public_name_has_a_type(tmp_path: Path) -> None:
    """`pyright --verifytypes` finds no public symbol whose type is unknown or a guess."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: it is in the dependency group `check`")
    output = json.loads(
        run("pyright", "--verifytypes", "baas_auth_plugins", "--ignoreexternal", "--outputjson", cwd=tmp_path)
    )
    report = output["typeCompleteness"]
    doubtful = [
        symbol["name"] for symbol in report["symbols"] if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    ]
    assert (report["completenessScore"], doubtful) == (1, [])
