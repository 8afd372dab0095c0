"""The page and the control API of the sandbox, for people and programs but not for web pages of others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from sandbox_wire import (
    AXIA,
    BASIC,
    BS2,
    JSON,
    SECRET,
    Answer,
    Clock,
    Sent,
    basic,
    bearer,
    mint,
    send,
    status,
    with_headers,
)

from baas_auth_plugins.sandbox import Fault, Sandbox

HTML = {"Accept": "text/html,*/*;q=0.8"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(clock=clock) as sandbox:
        yield sandbox


def get(sandbox: Sandbox, path: str, **headers: str) -> Answer:
    return send(sandbox, with_headers(Sent(f"/_sandbox/{path}", {}, method="GET"), **headers))


def post(sandbox: Sandbox, path: str, content: Any = None, **headers: str) -> Answer:
    body = b"" if content is None else json.dumps(content).encode()
    return send(sandbox, with_headers(Sent(f"/_sandbox/{path}", {"Content-Type": JSON}, body), **headers))


def test_faults_and_figures_over_http(sandbox: Sandbox) -> None:
    """A sandbox in another process is driven by its own paths, which count as nobody's traffic."""
    fault = {"kind": "body", "target": "api", "times": -1, "body": "{}", "headers": {"X-A": "b"}}
    assert send(sandbox, Sent("/_sandbox/faults", {}, json.dumps(fault).encode())).status == 204
    answer = send(sandbox, bearer(mint(sandbox), "/x"))
    assert (answer.text, answer.headers["X-A"]) == ("{}", "b")
    assert send(sandbox, Sent("/_sandbox/faults", {}, method="DELETE")).status == 204
    assert status(sandbox, "unknown", "/x") == 401
    assert send(sandbox, Sent("/_sandbox/stats", {}, method="GET")).json == {
        "requests": {"axia": {"token": 1, "api": 1}, "other": {"api": 1}},
        "max_in_flight": 1,
    }
    assert len(sandbox.requests) == 3


@pytest.mark.parametrize(
    ("method", "path", "expected", "allow"),
    [
        ("PUT", "/_sandbox/faults", 405, "GET, POST, DELETE"),
        ("POST", "/_sandbox/stats", 405, "GET"),
        ("GET", "/_sandbox/secrets", 404, None),
        ("POST", "/_sandbox/faults", 400, None),
    ],
)
def test_own_paths_are_strict(sandbox: Sandbox, method: str, path: str, expected: int, allow: str | None) -> None:
    """Whatever the sandbox's own paths do not offer is refused."""
    answer = send(sandbox, Sent(path, {}, b"not JSON", method))
    assert (answer.status, answer.headers["Allow"]) == (expected, allow)


# -- reading and controlling


def test_index_lists_every_path(sandbox: Sandbox) -> None:
    """GET /_sandbox/ names each method and path with one line, and each of those that read works."""
    listed = get(sandbox, "").json
    assert {"GET /_sandbox/state", "POST /_sandbox/revoke", "DELETE /_sandbox/faults"} <= listed.keys()
    for line in listed:
        method, _, path = line.partition(" ")
        if method == "GET":
            assert send(sandbox, Sent(path, {}, method="GET")).status == 200


def test_state_is_all_that_the_page_shows(sandbox: Sandbox, clock: Clock) -> None:
    """The state has gateways, tokens by digest, faults, settings and masked requests; no token and no wrong secret."""
    token = mint(sandbox, "bs2")
    send(sandbox, with_headers(AXIA, Authorization=basic("your-client-id:s3cret")))
    sandbox.inject(Fault("body", "api", times=3, body=b"s3cret"))
    clock.now += 100
    answer = get(sandbox, "state")
    state = answer.json
    assert answer.headers["Cache-Control"] == "no-store"
    assert (state["now"], state["url"], state["first"], state["last"]) == (clock.now, sandbox.url, 1, 2)
    assert state["settings"] == {"expires_in": None, "single_active_token": False, "enforce_rate_limits": True}
    assert [gateway["name"] for gateway in state["gateways"]] == ["axia", "ntxpay", "avista", "bs2"]
    (shown,) = state["tokens"]
    assert (shown["digest"], shown["provider"], shown["remaining"]) == (sandbox.tokens[0].digest, "bs2", 200)
    (fault,) = state["faults"]
    assert (fault["kind"], fault["times"], fault["body"]) == ("body", 3, "(6 bytes)")
    assert [request["problem"] for request in state["requests"]] == ["", "the client_secret is not the sandbox's"]
    assert not any(secret in answer.text for secret in (token, "s3cret", BASIC))


def test_gateways_are_shown_with_their_exact_request(sandbox: Sandbox) -> None:
    """Each gateway has the request of its page, and NTX Pay an origin of its own."""
    axia, ntxpay, _, bs2 = get(sandbox, "gateways").json["gateways"]
    assert axia["request"] == (
        "POST /v1/authentication/oauth/access-token\n"
        "Authorization: Basic base64(client_id:client_secret)\nContent-Type: application/json\n\n(no body)"
    )
    assert bs2["request"].endswith("\n\ngrant_type=client_credentials&scope=cob.read+pix.read")
    assert (axia["url"], ntxpay["url"]) == (sandbox.url, sandbox.url_for("ntxpay"))
    assert (bs2["expires_in"], bs2["token_rate_limit"], axia["scope"]) == (300, [10, 60], "assigned")


def test_environment_is_read_over_http(sandbox: Sandbox) -> None:
    """A program in another process gets the variables of each gateway."""
    environment = get(sandbox, "environment").json["environment"]
    assert environment == {name: sandbox.environment(name) for name in ("axia", "ntxpay", "avista", "bs2")}


def test_requests_are_read_from_a_number_on(sandbox: Sandbox) -> None:
    """A log that grows is read in steps; what was cleared is known by the first number that is kept."""
    for _ in range(3):
        mint(sandbox)
    assert [request["number"] for request in get(sandbox, "requests?after=1").json["requests"]] == [2, 3]
    assert get(sandbox, "requests?after=3").json == {"first": 1, "last": 3, "requests": []}
    assert send(sandbox, Sent("/_sandbox/requests", {}, method="DELETE")).status == 204
    assert get(sandbox, "requests").json == {"first": 4, "last": 3, "requests": []}
    for wrong in ("x", "-1", "1e3", "9" * 30):
        assert get(sandbox, f"requests?after={wrong}").status == 400


def test_tokens_are_revoked_and_expire_over_http(sandbox: Sandbox) -> None:
    """One token, one gateway's or all end as the body says, and the answer says how many."""
    mint(sandbox)
    mint(sandbox, "avista")
    mint(sandbox, "bs2")
    digest = get(sandbox, "tokens").json["tokens"][0]["digest"]
    assert post(sandbox, "revoke", {"digest": digest}).json == {"revoked": 1}
    assert post(sandbox, "expire", {"provider": "bs2"}).json == {"expired": 1}
    assert post(sandbox, "expire").json == {"expired": 1}
    assert post(sandbox, "revoke", {}).json == {"revoked": 0}


def test_secret_is_rotated_over_http(sandbox: Sandbox) -> None:
    """A new secret is given, or made up; the old one is refused from then on."""
    assert post(sandbox, "secret").json == {"client_secret": "your-client-secret-2"}
    assert send(sandbox, AXIA).status == 401
    assert post(sandbox, "secret", {"client_secret": SECRET}).json == {"client_secret": SECRET}
    assert send(sandbox, AXIA).status == 200


def test_settings_are_changed_over_http(sandbox: Sandbox) -> None:
    """The lifetime, the limit and the single token are settings; a wrong value changes none of them."""
    changed = {"expires_in": 60, "single_active_token": True}
    assert post(sandbox, "settings", changed).json == {**changed, "enforce_rate_limits": True}
    assert send(sandbox, BS2).json["expires_in"] == 60
    for wrong in ({"expires_in": 0}, {"expires_in": True}, {"expires_in": 1e30}, {"single_active_token": 1}, {"x": 1}):
        assert post(sandbox, "settings", {"enforce_rate_limits": False, **wrong}).status == 400
    assert sandbox.enforce_rate_limits
    assert post(sandbox, "settings", {"expires_in": None}).json["expires_in"] is None


def test_everything_is_cleared_over_http(sandbox: Sandbox) -> None:
    """Requests, faults and tokens are forgotten together."""
    token = mint(sandbox)
    sandbox.inject(Fault("drop", times=-1))
    assert get(sandbox, "faults").json["faults"][0]["kind"] == "drop"
    assert post(sandbox, "clear").status == 204
    assert (sandbox.requests, sandbox.tokens, sandbox.faults) == ([], [], [])
    assert status(sandbox, token) == 401
    assert get(sandbox, "jwks").json == sandbox.jwks()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("revoke", []),
        ("revoke", {"digest": 1}),
        ("revoke", {"digest": ""}),
        ("revoke", {"token": "x"}),
        ("expire", "all"),
        ("secret", {"client_secret": None}),
        ("settings", [1]),
        ("faults", None),
    ],
)
def test_wrong_bodies_are_refused_with_the_reason(sandbox: Sandbox, path: str, content: Any) -> None:
    """A body that says nothing the sandbox knows is a 400 with an error text."""
    answer = post(sandbox, path, content)
    assert (answer.status, list(answer.json)) == (400, ["error"])


def test_faults_cannot_fill_the_memory(sandbox: Sandbox) -> None:
    """There is a limit to the faults that wait."""
    for _ in range(1000):
        sandbox.inject(Fault("drop"))
    answer = post(sandbox, "faults", {"kind": "drop"})
    assert (answer.status, answer.json) == (400, {"error": "1000 faults are waiting already; clear them first"})


def test_page_that_polls_a_sandbox_while_it_closes_prints_nothing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A control request that comes in between gets a 503."""
    monkeypatch.setattr(sandbox, "_own", [])
    monkeypatch.setattr(sandbox, "url_for", Sandbox().url_for)
    assert get(sandbox, "state").status == 503
    assert capfd.readouterr() == ("", "")


# -- web pages


@pytest.mark.parametrize("path", ["", "state", "requests", "stats"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://localhost:{port}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_foreign_web_pages_cannot_read(sandbox: Sandbox, path: str, headers: dict[str, str]) -> None:
    """What a page of another origin sends, by DNS rebinding too, is a 403 without content."""
    port = str(urlsplit(sandbox.url).port)
    answer = get(
        sandbox, path, **{name.replace("-", "_"): value.replace("{port}", port) for name, value in headers.items()}
    )
    assert (answer.status, list(answer.json)) == (403, ["error"])
    assert answer.headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Content-Type": "application/json; charset=utf-8"}, 204),
        ({"Origin": "{url}", "Sec-Fetch-Site": "same-origin"}, 204),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["faults", "clear"])
def test_foreign_web_pages_cannot_control(sandbox: Sandbox, path: str, headers: dict[str, str], expected: int) -> None:
    """A form or a simple request of another page changes nothing; the sandbox's own page may."""
    mint(sandbox)
    changed = {name.replace("-", "_"): value.replace("{url}", sandbox.url) for name, value in headers.items()}
    assert post(sandbox, path, {"kind": "drop"}, **changed).status == expected
    unchanged = (0, 1)
    changed_to = {"faults": (1, 1), "clear": (0, 0)}[path]
    assert (len(sandbox.faults), len(sandbox.requests)) == (changed_to if expected == 204 else unchanged)


def test_preflight_is_refused(sandbox: Sandbox) -> None:
    """No answer lets a page of another origin send more than a simple request."""
    sent = Sent("/_sandbox/faults", {"Origin": "https://evil.example"}, method="OPTIONS")
    answer = send(sandbox, with_headers(sent, Access_Control_Request_Method="DELETE"))
    assert answer.status == 403
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        ({}, {"127.0.0.1:{port}": 200, "localhost:{port}": 200, "[::1]:{port}": 200, "sandbox:{port}": 403}),
        ({"hostnames": ["Sandbox"]}, {"sandbox:{port}": 200, "SANDBOX:{port}": 200, "sandbox": 403}),
        ({"hostnames": ["localhost:9000"]}, {"localhost:9000": 200, "localhost:{port}": 200, "localhost:9001": 403}),
        ({"host": "0.0.0.0"}, {"127.0.0.1:{port}": 200, "0.0.0.0:{port}": 403}),  # noqa: S104  # as in a container
    ],
    ids=str,
)
def test_host_is_one_of_the_sandboxs_names(options: dict[str, Any], hosts: dict[str, int]) -> None:
    """The page and the control API answer to the sandbox's names: loopback's, and those that it was given."""
    with Sandbox(**options) as sandbox:
        port = str(urlsplit(sandbox.url).port)
        for host, expected in hosts.items():
            assert get(sandbox, "stats", Host=host.replace("{port}", port)).status == expected, host


def test_default_port_is_not_named(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """On port 80, or 443 with TLS, clients leave the port out of Host and Origin."""
    url = f"{sandbox.url}/_sandbox/stats"
    monkeypatch.setattr(sandbox, "_url", "http://127.0.0.1:80")
    headers = {"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}
    assert requests.get(url, headers=headers, timeout=10).status_code == 200
    assert requests.get(url, headers=headers | {"Origin": "https://127.0.0.1"}, timeout=10).status_code == 403


# -- the page


def test_page_needs_nothing_from_elsewhere(sandbox: Sandbox) -> None:
    """The page is one file whose policy admits its own script and style by digest, and nothing that is loaded."""
    answer = send(sandbox, Sent("/", HTML, method="GET"))
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert not [word for word in ('<link rel="stylesheet', 'src="', "@import", "innerHTML") if word in answer.text]
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "change", [{"Accept": None}, {"Accept": "*/*"}, {"Authorization": "Bearer abc"}, {"Authorization": BASIC}]
)
def test_only_browsers_get_the_page(sandbox: Sandbox, change: dict[str, Any]) -> None:
    """A program that asks for / without wanting HTML, or with credentials, reaches the API there."""
    assert send(sandbox, with_headers(Sent("/", HTML, method="GET"), **change)).status == 401
    assert sandbox.requests[0].kind == "api"


def test_page_is_not_for_other_hosts(sandbox: Sandbox) -> None:
    """A link from elsewhere leads to the page; another host name, as after DNS rebinding, does not."""
    page = Sent("/", HTML, method="GET")
    assert send(sandbox, with_headers(page, Sec_Fetch_Site="cross-site")).status == 200
    assert send(sandbox, with_headers(page, Host="evil.example")).status == 403


def test_origin_of_one_gateway_has_no_control(sandbox: Sandbox) -> None:
    """There the page's and the control API's paths are API paths, as at the gateway."""
    for path in ("/", "/_sandbox/", "/_sandbox/stats"):
        assert requests.get(sandbox.url_for("avista") + path, headers=HTML, timeout=10).status_code == 401
    assert sandbox.counts() == {("avista", "api"): 3}
