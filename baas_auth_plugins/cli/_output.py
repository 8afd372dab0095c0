"""What users see: facts and JSON on standard output; errors, waits and log records on standard error.

Streams that cannot show a character show its escape. On a terminal, lines break between words. In a pipe or a file
nothing is broken, so that programs can read it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console

__all__ = [
    "as_json",
    "console",
    "discard_output",
    "fail",
    "logging_to_stderr",
    "moment",
    "print_facts",
    "print_json",
    "print_line",
    "tolerate_encodings",
    "waiting",
]

PATIENCE = 1.0  # seconds before a wait is announced

_LOGGER = logging.getLogger("baas_auth_plugins")


def tolerate_encodings() -> None:
    """Make both streams write escapes where their encoding lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a test's stream, or a closed one
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # that is what is suppressed


def console(stream: TextIO) -> Console:
    """Return a rich console that prints text as it is, without markup, emoji or highlights.

    Args:
        stream: standard output or standard error.
    """
    return Console(file=stream, markup=False, emoji=False, highlight=False)


def print_line(text: str, *, stream: TextIO | None = None, indent: str = "  ") -> None:
    """Print one line, broken between words where the stream is a narrow terminal.

    Args:
        text: what to print; control characters become spaces.
        stream: default: standard output.
        indent: what further lines begin with.
    """
    stream = sys.stdout if stream is None else stream
    text = "".join(character if character.isprintable() else " " for character in text)
    if stream is not None and stream.isatty():
        width = max(20, shutil.get_terminal_size().columns)
        text = textwrap.fill(
            text,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    print(text, file=stream, flush=True)


def fail(text: str) -> None:
    """Print an error, one line on standard error.

    Args:
        text: what is wrong and what to do.
    """
    print_line(f"baas-auth: {' '.join(text.split())}", stream=sys.stderr)


def print_facts(facts: Mapping[str, str | None], *, title: str | None = None) -> None:
    """Print one fact a line, in two columns.

    Args:
        facts: name to value; None is left out.
        title: a line before them.
    """
    known = {name: value for name, value in facts.items() if value is not None}
    margin = "  " if title else ""
    width = max((len(name) for name in known), default=0) + 2
    if title:
        print_line(title)
    for name, value in known.items():
        label = f"{margin}{name + ':':{width}}"
        print_line(f"{label}{value}", indent=" " * len(label))


def print_json(value: object) -> None:
    """Print a value as JSON, in ASCII, for programs.

    Args:
        value: what `json.dumps` accepts.
    """
    print(json.dumps(value, indent=2), flush=True)


def moment(seconds: float | None) -> str | None:
    """Return a time as ISO 8601 in UTC.

    Args:
        seconds: epoch seconds, or None.
    """
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g}"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on standard error what this waits for, if it takes a second or more.

    Args:
        what: what it waits for, and for how long at most.
    """
    timer = threading.Timer(PATIENCE, print_line, (f"waiting for {what}",), {"stream": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Handler(logging.Handler):
    """Prints records to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(f"{record.levelname.lower()}: {record.getMessage()}", stream=sys.stderr)


@contextmanager
def logging_to_stderr(*, verbose: bool, waits: bool) -> Iterator[None]:
    """Show the package's log records on standard error for as long as a command runs.

    Args:
        verbose: show all records.
        waits: show at least the waits, which are logged at INFO. Warnings and errors are in the line that the command
            ends with.
    """
    handler, level = _Handler(), _LOGGER.level
    handler.addFilter(lambda record: verbose or (waits and record.levelno == logging.INFO))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        _LOGGER.setLevel(level)
        _LOGGER.removeHandler(handler)


def discard_output() -> None:
    """Let the interpreter flush standard output at its end into nothing, because its reader has gone."""
    with suppress(AttributeError, OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def as_json(value: Any) -> Any:
    """Return a value that `json.dumps` accepts: sets become sorted lists.

    Args:
        value: a value of a named tuple or a dataclass.
    """
    return sorted(value) if isinstance(value, set | frozenset) else value
