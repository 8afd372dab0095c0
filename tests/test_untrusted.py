"""Gateways are not trusted: whatever they answer, a result that makes sense or a typed error comes out."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

FUZZER = Path(__file__).parent / "fuzz" / "fuzz_responses.py"

_spec = importlib.util.spec_from_file_location("fuzz_responses", FUZZER)
assert _spec is not None
assert _spec.loader is not None
fuzz = sys.modules["fuzz_responses"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz)

each_question = pytest.mark.parametrize("question", fuzz.QUESTIONS, ids=lambda question: question.__name__.strip("_"))
thorough = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])

statuses = st.sampled_from([200, 200, 200, 201, 400, 401, 403, 404, 429, 500, 503]) | st.integers(200, 599)
texts = st.text(max_size=40) | st.text("s3cret/of=the+client \x1b\r\n\x00", max_size=60) | st.just(fuzz.SECRET)
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 10**400, -(10**30), 1e308, True, "3600", "-1", "1e9", "\u0663", "9" * 18, "9" * 19, ""])
)
dates = st.datetimes().map(format_datetime) | st.sampled_from(
    [
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Thu, 01 Jan 1970",
        "Sun, 99 Foo 2024 99:99:99 GMT",
    ]
)
moments = st.datetimes().map(lambda moment: moment.isoformat()) | dates | numbers
values = st.recursive(
    st.none() | st.booleans() | numbers | texts | moments,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
members = st.fixed_dictionaries(
    {},
    optional={
        "access_token": st.text("abcXYZ019-._~+/=", min_size=1, max_size=30) | values,
        "token_type": st.sampled_from(["Bearer", "bearer", "MAC"]) | values,
        "expires_in": numbers | values,
        "scope": st.just("cob.read pix.read") | values,
        "error": st.sampled_from(["invalid_client", "invalid_scope", "E00101", fuzz.SECRET]) | values,
        "code": values,
        "error_description": values,
        "message": values,
        "retry_after": numbers | dates | values,
        "active": st.booleans() | values,
        "client_id": values,
        "exp": moments,
        "iat": moments,
        "issued_at": moments,
        "expires_at": moments,
        "reason": values,
        "status": values,
        "revoked_at": moments,
        "token_id": values,
    },
)
objects = members.map(lambda found: json.dumps(found).encode())
bodies = objects | st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode())
header_texts = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), max_size=40)
headers = st.lists(
    st.tuples(st.just("Retry-After"), header_texts | dates | numbers.map(str))
    | st.tuples(st.just("Date"), header_texts | dates)
    | st.tuples(st.just("Content-Encoding"), st.sampled_from(["", "identity", "gzip", "deflate", "br", "gzip, gzip"]))
    | st.tuples(st.just("Content-Type"), header_texts),
    max_size=3,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: tuple((name, value.encode("ascii", "ignore").decode()) for name, value in pairs))
answers = st.builds(fuzz.Answer, statuses, headers, bodies)


@each_question
@thorough
@given(answer=answers)
@example(answer=fuzz.Answer(200, (), b"[" * 100_000))
@example(answer=fuzz.Answer(200, (), b'{"access_token": "t0ken", "expires_in": ' + b"9" * 5000 + b"}"))
@example(answer=fuzz.Answer(200, (), b'{"access_token": "\\ud800", "expires_in": 1}'))
@example(answer=fuzz.Answer(401, (), b'{"error": "\\ud800", "message": "\\udfff\\u202e"}'))
@example(answer=fuzz.Answer(200, (), '{"access_token": "t0ken"}'.encode("utf-16")))
@example(answer=fuzz.Answer(429, (("Retry-After", "9" * 40),), b"{}"))
@example(answer=fuzz.Answer(429, (), b'{"retry_after": -Infinity}'))
def test_any_answer_has_a_typed_outcome(question: Callable[[Any], Any], answer: Any) -> None:
    """A token, an introspection or a revocation that makes sense; else a `TokenEndpointError` fit for a log."""
    fuzz.check(question, answer)


@each_question
@settings(max_examples=50)
@given(body=objects, encoding=st.sampled_from(["gzip", "deflate"]), cut=st.integers(0, 40), junk=st.binary(max_size=20))
def test_a_broken_encoding_has_a_typed_outcome(
    question: Callable[[Any], Any], body: bytes, encoding: str, cut: int, junk: bytes
) -> None:
    """Compressed bodies that are cut short, or followed by something else, are errors like any other."""
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    fuzz.check(question, fuzz.Answer(200, (("Content-Encoding", encoding),), packed[: len(packed) - cut] + junk))


@pytest.mark.parametrize("question", fuzz.READERS, ids=lambda question: question.__name__.strip("_"))
def test_answers_that_make_sense_are_read(question: Callable[[Any], Any]) -> None:
    """The checks are not vacuous: a good answer to each question gives a result, not an error."""
    good = {
        "access_token": "t0ken",
        "token_type": "Bearer",
        "expires_in": 3600,
        "scope": "cob.read pix.read",
        "active": True,
        "status": "done",
    }
    outcome = fuzz.check(question, fuzz.Answer(200, (), json.dumps(good).encode()))
    assert outcome in {"Token", "Introspection", "Revocation"}


def test_hostile_bodies_are_quick() -> None:
    """A mebibyte that is made to be slow to search, parse or blank takes no time to speak of."""
    tried: Counter[str] = Counter()
    started = time.perf_counter()
    for text in ("A", "=", "\\u0041", " ", "s3cret", "-.", "A" * 19 + " ", "1", "\\\\"):
        filler = text * ((1 << 20) // len(text) - 100)
        for body in (f'{{"message": "{filler}"}}', f'{{"access_token": "{filler}"}}', f'{{"retry_after": "{filler}"}}'):
            for status in (200, 401, 429):
                answer = fuzz.Answer(status, (("Retry-After", filler[:60_000]),), body[: 1 << 20].encode())
                tried[fuzz.check(fuzz.QUESTIONS[0], answer)] += 1
    assert time.perf_counter() - started < 60
    assert tried.total() == 81


def test_the_fuzzer_says_what_it_needs() -> None:
    """Without atheris the fuzzer ends with a sentence, not a traceback; with it, it runs."""
    found = subprocess.run(
        [sys.executable, "-X", "utf8", str(FUZZER), "-runs=20"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=FUZZER.parents[2],
        env={"PYTHONPATH": str(FUZZER.parents[2])},
    )
    if importlib.util.find_spec("atheris"):
        assert found.returncode == 0
    else:
        assert found.returncode == 1
        assert found.stderr.startswith("the fuzzer needs atheris")
