"""The token goes to `base_url` and `allowed_origins`, and nowhere else, however the place is spelt."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
import requests
import responses
from conftest import Client, make, sent_tokens
from hypothesis import example, given
from hypothesis import strategies as st

from baas_auth_plugins import AxiaAuth, BS2Auth, ConfigurationError, InsecureTransportError, MemoryTokenCache
from baas_auth_plugins._oauth.origins import AllowedOrigins, origin, origin_of_url, parse_origin
from baas_auth_plugins.sandbox import Fault, Sandbox

PATH = "/v1/accounts"

HOME = [
    "http://localhost:{home}",
    "http://LOCALHOST:{home}",
    "HTTP://LocalHost:{home}",
    "http://localhost.:{home}",
    "http://someone:password@localhost:{home}",
]
"""Spellings of the place that may have the token."""

ELSEWHERE = [
    "http://evil.example:{foreign}",
    "http://localhost.evil.example:{foreign}",
    "http://evil-localhost:{foreign}",
    "http://sub.localhost:{foreign}",
    "http://localhost@evil.example:{foreign}",
    "http://localhost:{home}@evil.example:{foreign}",
    "http://b\u00fccher.example:{foreign}",
    "http://xn--bcher-kva.example:{foreign}",
]
"""Places that look like it, which every client connects to."""

RIDDLES = [
    "http://localhost:{home}\\@evil.example:{foreign}",
    "http://evil.example:{foreign}\\@localhost:{home}",
    "http://evil.example:{foreign}#@localhost:{home}",
    "http://evil.example:{foreign}?@localhost:{home}",
    "http://evil.example:{foreign}/@localhost:{home}",
    "http:\\\\evil.example:{foreign}\\",
    "http:///evil.example:{foreign}",
    "http://localhost%2eevil.example:{foreign}",
    "http://evil.example%00.localhost:{foreign}",
    "http://localhost..:{foreign}",
    "http://localhost\u3002evil.example:{foreign}",
    "http://loc\u0430lhost:{foreign}",
    "http://\u24d4vil.example:{foreign}",
    "http://local\thost.evil.example:{foreign}",
    "http://localhost:{home}\n.evil.example:{foreign}",
    "http://[::ffff:127.0.0.2]:{foreign}",
    "http://2130706434:{foreign}",
    "http://0x7f.2:{foreign}",
]
"""Addresses that parsers have disagreed about; a client may refuse them."""


class Places(NamedTuple):
    home: Sandbox
    foreign: Sandbox

    @property
    def ports(self) -> dict[str, int | None]:
        return {"home": urlsplit(self.home.url).port, "foreign": urlsplit(self.foreign.url).port}

    def spell(self, pattern: str) -> str:
        return pattern.format(**self.ports) + PATH

    def auth(self, **parameters: Any) -> Any:
        return make(AxiaAuth, self.home, base_url="http://localhost:{home}".format(**self.ports), **parameters)


@pytest.fixture
def places(new_sandbox: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch) -> Places:
    """Two servers on one port of two addresses, and names that lead to the one (localhost) or the other."""
    home = new_sandbox()
    try:
        foreign = new_sandbox(host="127.0.0.2", port=urlsplit(home.url).port)
    except OSError:  # macOS has one loopback address; then the ports differ as well
        foreign = new_sandbox()
    look_up = socket.getaddrinfo
    addresses = {"localhost": "127.0.0.1", "localhost.": "127.0.0.1"}

    def resolve(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name and not name.replace(".", "").isdigit():
            name = addresses.get(name.lower(), urlsplit(foreign.url).hostname)
        return look_up(name, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return Places(home, foreign)


def received(sandbox: Sandbox) -> str:
    """Return all that reached a server, as text to search."""
    return repr([(r.path, r.query, dict(r.headers), r.body) for r in sandbox.requests])


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "baas_auth_plugins" and r.levelno == logging.WARNING]


# -- over real sockets, through every client


@pytest.mark.parametrize("pattern", HOME)
def test_every_spelling_of_the_base_url_gets_the_token(client: Client, places: Places, pattern: str) -> None:
    """Case, a trailing dot and userinfo change nothing about where a request goes, nor whether it is authenticated."""
    answer = client.call(places.auth(), "GET", places.spell(pattern))
    assert (answer.status, answer.json["provider"]) == (200, "axia")
    assert places.foreign.requests == []


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_a_request_elsewhere_goes_out_without_the_token(client: Client, places: Places, pattern: str) -> None:
    """An absolute URL to another host, however alike, passes through with no Authorization header at all."""
    auth = places.auth()
    with client.open(auth) as send:
        send("GET", places.spell("http://localhost:{home}"))
        assert send("GET", places.spell(pattern)).status == 401
    assert ["authorization" in r.headers for r in places.foreign.requests] == [False]
    assert auth.get_token().access_token not in received(places.foreign)


@pytest.mark.parametrize("pattern", RIDDLES)
def test_an_ambiguous_address_never_carries_the_token_elsewhere(client: Client, places: Places, pattern: str) -> None:
    """Where a client's parser leads it to another server, the token stays behind."""
    auth = places.auth()
    token = auth.get_token().access_token
    try:
        client.call(auth, "GET", places.spell(pattern))
    except (client.error, getattr(client.module, "InvalidURL", client.error), ValueError):
        pass  # the client's own opinion
    assert token not in received(places.foreign)
    assert not any("authorization" in r.headers for r in places.foreign.requests)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_elsewhere_that_answers_401_gets_no_token(client: Client, places: Places, status: int) -> None:
    """The foreign 401 is the caller's answer: no replay, no mint, and no Authorization header ever arrives there."""
    auth = places.auth()
    location = places.spell("http://localhost.evil.example:{foreign}")
    places.home.inject(Fault("redirect", "api", status=status, headers={"Location": location}))
    with client.open(auth, follow_redirects=True) as send:
        assert send("GET", places.spell("http://localhost:{home}")).status == 401
    assert ["authorization" in r.headers for r in places.foreign.requests] == [False]
    assert (places.home.count("token"), places.home.count("api")) == (1, 1)
    assert auth.get_token().access_token not in received(places.foreign)


def test_a_redirect_there_and_back_leaks_nothing(client: Client, places: Places) -> None:
    """From home to elsewhere and home again: what comes home without the token is sent there once more with it."""
    auth = places.auth()
    home = places.spell("http://localhost:{home}")
    away = {"Location": places.spell("http://evil.example:{foreign}")}
    places.home.inject(Fault("redirect", "api", headers=away))
    places.foreign.inject(Fault("redirect", "api", headers={"Location": home}))
    with client.open(auth, follow_redirects=True) as send:
        assert send("GET", home).status == 200
    token = auth.get_token().access_token
    assert sent_tokens(places.home) == [token, None, token]
    assert token not in received(places.foreign)
    assert (len(places.foreign.requests), places.home.count("token")) == (1, 1)


def test_a_client_that_keeps_the_header_still_sees_no_replay_elsewhere(client: Client, places: Places) -> None:
    """A caller who carries Authorization over a redirect leaks that one token; a 401 there gets no other from us."""
    auth = places.auth()
    home, away = places.spell("http://localhost:{home}"), places.spell("http://evil.example:{foreign}")
    places.home.inject(Fault("redirect", "api", headers={"Location": away}))
    seen: list[str] = []

    def keep(request: Any) -> None:
        seen.append(request.headers.get("Authorization") or seen[-1])
        request.headers["Authorization"] = seen[-1]

    async def akeep(request: Any) -> None:
        keep(request)

    if client.module is requests:
        with requests.Session() as session:
            session.trust_env, session.auth = False, auth
            session.rebuild_auth = lambda *_: None  # type: ignore[method-assign]  # a well-known recipe
            status = session.get(home).status_code
    else:
        hooks = {"request": [akeep if client.backend else keep]}
        with client.open(auth, follow_redirects=True, event_hooks=hooks) as send:
            status = send("GET", home).status
    assert status == 401
    assert [r.headers.get("authorization") for r in places.foreign.requests] == [
        f"Bearer {auth.get_token().access_token}"
    ]
    assert places.home.count("token") == 1


def test_one_warning_tells_of_each_foreign_origin(
    client: Client, places: Places, caplog: pytest.LogCaptureFixture
) -> None:
    """However many requests go to an origin, and however it is spelt, it is warned of once, without path or userinfo."""
    patterns = [
        "http://evil.example:{foreign}",
        "http://EVIL.example.:{foreign}",
        "http://someone:hush@evil.example:{foreign}",
        "http://other.example:{foreign}",
        "http://other.example:{foreign}",
        "http://localhost:{home}",
    ]
    with client.open(places.auth()) as send:
        for pattern in patterns:
            send("GET", places.spell(pattern) + "?quiet=hush")
    said = warnings_in(caplog)
    expected = [places.spell(f"http://{name}.example:{{foreign}}").removesuffix(PATH) for name in ("evil", "other")]
    assert [place for text in said for place in expected if f"no token sent to {place};" in text] == expected
    assert len(said) == 2
    assert "hush" not in "".join(said)


def test_allowed_origins_get_the_token_too(client: Client, places: Places) -> None:
    """An origin that is named in `allowed_origins` gets the token, and its 401 a replay; its neighbours do not."""
    auth = places.auth(allowed_origins=[places.spell("http://127.0.0.2:{foreign}").removesuffix(PATH)])
    if places.foreign.url.startswith("http://127.0.0.1"):
        auth = places.auth(allowed_origins=[places.foreign.url])
    with client.open(auth) as send:
        assert send("GET", places.foreign.url + PATH).status == 401
        assert send("GET", places.spell("http://evil.example:{foreign}")).status == 401
    carried = [r.headers.get("authorization") for r in places.foreign.requests]
    assert [bool(value) for value in carried] == [True, True, False]
    assert carried[0] != carried[1]


@pytest.mark.parametrize("spelling", ["[::1]", "[0:0:0:0:0:0:0:1]", "[::0001]"])
def test_an_ipv6_literal_is_one_place_however_it_is_spelt(
    client: Client, new_sandbox: Callable[..., Sandbox], spelling: str
) -> None:
    """Over a real IPv6 socket, the long and the short form of an address both get the token."""
    try:
        sandbox = new_sandbox(host="::1")
    except OSError:
        pytest.skip("no IPv6 loopback here")
    url = sandbox.url.replace("[::1]", spelling) + PATH
    assert client.call(make(AxiaAuth, sandbox), "GET", url).status == 200


# -- production names, which no test may connect to


def authorization_sent(client: Client, auth: Any, url: str) -> str | None:
    """Return the Authorization header that a request to a URL would carry."""
    if client.module is requests:
        with responses.RequestsMock() as mocked:
            mocked.get(url=requests.Request("GET", url).prepare().url)
            sent = requests.get(url, auth=auth, timeout=5).request.headers.get("Authorization")
        return sent if sent is None or isinstance(sent, str) else sent.decode()
    transport = client.module.MockTransport(lambda request: client.module.Response(200))
    with client.open(auth, transport=transport) as send:
        header: str | None = send("GET", url).raw.request.headers.get("Authorization")
    return header


@pytest.fixture
def bs2() -> BS2Auth:
    """Production's auth object, holding a token; its client_id is new, for BS2's rate limit is kept per client."""
    auth = BS2Auth(f"client-{uuid4()}", "secret", scope="cob.read", cache=MemoryTokenCache())
    with responses.RequestsMock() as mocked:
        mocked.post("https://api.bs2.com/auth/oauth/v2/token", json={"access_token": "t0ken", "expires_in": 300})
        auth.get_token()
    return auth


@pytest.mark.parametrize(
    ("url", "admitted"),
    [
        ("https://api.bs2.com/pix", True),
        ("https://api.bs2.com:443/pix", True),
        ("https://API.BS2.COM/pix", True),
        ("https://api.bs2.com./pix", True),
        ("https://api.bs2.com:8443/pix", False),
        ("https://api.bs2.com:80/pix", False),
        ("http://api.bs2.com/pix", False),
        ("http://api.bs2.com:443/pix", False),
        ("https://api.bs2.com.evil.example/pix", False),
        ("https://api.bs2.com@evil.example/pix", False),
        ("https://evil.example/api.bs2.com", False),
        ("https://bs2.com/pix", False),
        ("https://v2.api.bs2.com/pix", False),
        ("https://api-bs2.com/pix", False),
        ("https://xn--api-bs2-0ya.com/pix", False),
        ("https://\u00e1pi.bs2.com/pix", False),
        ("https://[2001:db8::1]/pix", False),
    ],
)
def test_the_production_origin_is_matched_whole(client: Client, bs2: BS2Auth, url: str, admitted: bool) -> None:
    """Scheme, host and port all count: a downgrade, another port or a look-alike host gets no token."""
    assert (authorization_sent(client, bs2, url) is not None) is admitted


# -- what the constructor takes for an origin


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("https://api.bs2.com", "https://api.bs2.com"),
        (" https://API.bs2.com.:443/ ", "https://api.bs2.com"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("https://[2001:DB8:0::1]:8443", "https://[2001:db8::1]:8443"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
    ],
)
def test_an_origin_is_normalised(value: str, text: str) -> None:
    """What is given as an origin is kept in one spelling."""
    assert parse_origin("base_url", value)[0] == text


@pytest.mark.parametrize("parameter", ["base_url", "allowed_origins"])
@pytest.mark.parametrize(
    "value",
    [
        "https://hush@api.bs2.com",
        "https://id:hush@api.bs2.com",
        "https://@api.bs2.com",
        "https://api.bs2.com/hush",
        "https://api.bs2.com?hush",
        "https://api.bs2.com#hush",
        "https://api.bs2.com\\hush",
        "https://api.bs2.com:hush",
        "https://api.bs2.com:99999",
        "https://hu sh.example",
        "https://[::hush]",
        "https://[::1",
        "https://",
        "hush.example",
        "ftp://hush.example",
        "//hush.example",
        "hush",
        b"https://hush.example",
        7,
    ],
)
def test_what_is_no_origin_is_refused_unquoted(parameter: str, value: Any) -> None:
    """Userinfo, a path, a query or nonsense is a ConfigurationError that names the parameter and quotes nothing."""
    given_value = [value] if parameter == "allowed_origins" else value
    with pytest.raises(ConfigurationError, match=parameter) as caught:
        AxiaAuth("id", "secret", **{parameter: given_value})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "http://api.bs2.com",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://127.1",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "http://[2001:db8::1]",
        "HTTP://EXAMPLE.COM",
    ],
)
def test_http_is_for_loopback_only(value: str) -> None:
    """Credentials travel over https; plain http is refused anywhere but on this machine."""
    with pytest.raises(InsecureTransportError, match="https"):
        AxiaAuth("id", "secret", base_url=value)
    with pytest.raises(InsecureTransportError, match="https"):
        AxiaAuth("id", "secret", allowed_origins=[value])


# -- for any input

labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=8).filter(lambda s: s.strip("-") == s)
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
ports = st.none() | st.integers(0, 65535)
awkward = st.text("htps:/\\@[]%.#?&;=\u3002\uff0e\u200d\u00e9 ab1\t\n", max_size=40)
addresses = (st.text(max_size=60) | awkward).flatmap(
    lambda text: st.sampled_from([text, f"https://{text}", f"https://api.bs2.com{text}", f"https://{text}api.bs2.com"])
)


@given(st.sampled_from(["http", "https"]), hosts, ports)
def test_normalising_twice_changes_nothing(scheme: str, host: str, port: int | None) -> None:
    """A normalised origin is its own normal form."""
    found = origin(scheme, host, port)
    assert found is not None
    assert origin(*found) == found


@given(st.sampled_from(["http", "https"]), hosts, ports)
def test_case_dots_and_default_ports_do_not_matter(scheme: str, host: str, port: int | None) -> None:
    """Upper case, a trailing dot and the default port written out give the same origin."""
    default = {"http": 80, "https": 443}[scheme]
    found = origin(scheme, host, port)
    assert found == origin(scheme.upper(), host.upper() + ".", default if port is None else port)


@given(st.text(max_size=10), st.text(max_size=30), st.integers() | st.none())
def test_any_scheme_host_and_port_can_be_asked_about(scheme: str, host: str, port: int | None) -> None:
    """Whatever a client's parser found: the answer is an origin in ASCII, or None."""
    found = origin(scheme, host, port)
    assert found is None or (found[0] in ("http", "https") and found[1].isascii() and found[1])


@given(hosts, hosts)
def test_a_look_alike_is_another_origin(host: str, other: str) -> None:
    """Nothing before or after a host leaves it the same host."""
    found = origin("https", host, None)
    for alike in (f"{host}.{other}", f"{other}.{host}", f"{other}{host}", f"{host}{other}"):
        assert origin("https", alike, None) != found


@given(addresses)
@example("https://api.bs2.com\\@evil.example")
@example("https://api.bs2.com:443@evil.example")
@example("https://[api.bs2.com]@evil.example")
@example("https://api.bs2.com%40evil.example")
@example("https://evil.example\uff03@api.bs2.com")
@example("https:evil.example")
def test_a_url_is_read_as_requests_reads_it(url: str) -> None:
    """The origin that is compared is the one that requests connects to, for every URL that it accepts."""
    try:
        prepared = requests.Request("GET", url).prepare()
        place, _ = requests.adapters.HTTPAdapter().build_connection_pool_key_attributes(prepared, True)
    except (requests.RequestException, ValueError):
        origin_of_url(url)  # which never raises
        return
    found = origin_of_url(prepared.url or "")
    assert found in (None, origin(place["scheme"], place["host"] or "", place["port"]))


@given(addresses)
@example("https://api.bs2.com\\@evil.example")
def test_a_url_is_read_as_httpx_reads_it(url: str) -> None:
    """No URL that httpx would connect elsewhere with is taken for the home origin."""
    try:
        found = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return
    home = AllowedOrigins("bs2", ("https", "api.bs2.com", 443), [])
    if home.allow(origin(found.scheme, found.raw_host.decode(), found.port)):
        assert found.raw_host.removesuffix(b".") == b"api.bs2.com"
    if home.is_home_url(found):
        assert (found.scheme, found.raw_host, found.port) == ("https", b"api.bs2.com", None)


@given(addresses | st.text(max_size=40))
def test_any_text_is_an_origin_or_a_typed_error(text: str) -> None:
    """`base_url` takes https, or http on loopback, in a stable spelling; all else is a ConfigurationError."""
    try:
        shown, found = parse_origin("base_url", text)
    except ConfigurationError:
        return
    assert parse_origin("base_url", shown) == (shown, found)
    assert shown.isascii()
    assert found[0] == "https" or found[1] in ("localhost", "::1") or found[1].startswith("127.")


def test_warnings_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand origins are warned of, and no more: what a caller is tricked into asking for fills no log."""
    allowed = AllowedOrigins("bs2", ("https", "api.bs2.com", 443), [])
    for number in range(1100):
        allowed.allow(("https", f"h{number}.example", 443))
    assert len(warnings_in(caplog)) == 1000


@given(addresses)
@example("https://api.bs2.com.evil.example/")
@example("https://api.bs2.com:443/")
@example("https://api.bs2.com\\@evil.example/")
def test_home_is_home_to_each_reader(url: str) -> None:
    """What the quick comparison takes for the home origin, the thorough one does, too."""
    home = AllowedOrigins("bs2", ("https", "api.bs2.com", 443), [])
    for url_or_more in (url, f"{url}/", f"https://api.bs2.com/{url}"):
        if home.is_home(url_or_more):
            assert home.allow(origin_of_url(url_or_more))


@pytest.mark.parametrize(
    ("home", "url", "is_home"),
    [
        ("https://api.bs2.com", "https://api.bs2.com/pix", True),
        ("https://api.bs2.com", "https://api.bs2.com", False),
        ("https://api.bs2.com", "https://api.bs2.com.evil.example/", False),
        ("https://api.bs2.com", "http://api.bs2.com/", False),
        ("https://api.bs2.com:8443", "https://api.bs2.com:8443/", True),
        ("https://api.bs2.com:8443", "https://api.bs2.com/", False),
        ("http://[::1]:80", "http://[::1]/x", True),
    ],
)
def test_home_is_compared_quickly(home: str, url: str, is_home: bool) -> None:
    """A URL surely goes home if it begins with the origin and a slash; else the thorough comparison decides."""
    allowed = AllowedOrigins("bs2", parse_origin("base_url", home)[1], [])
    assert allowed.is_home(url) is is_home
    if url.count("/") > 2:
        assert allowed.is_home_url(httpx.URL(url)) is is_home


def test_further_origins_are_the_others() -> None:
    """The origins of the API and of the user are listed as text, each once, without the token endpoint's."""
    home = ("https", "api.bs2.com", 443)
    allowed = AllowedOrigins("bs2", home, [("https", "b.example", 8443), ("https", "a.example", 443), home])
    assert allowed.further == ["https://a.example", "https://b.example:8443"]
    assert allowed.home == home
    assert all(map(allowed.allow, (home, ("https", "a.example", 443), ("https", "b.example", 8443))))
    assert not allowed.allow(("https", "b.example", 443))
    assert not allowed.allow(None)


# -- once there is a fresh token

NEIGHBOURS = ["http://api.fifth.example", "https://api.fifth.example:8443", "https://api.fifth.example.evil.example"]
"""As near to https://api.fifth.example as it gets: another scheme, another port, another host."""


def test_fresh_token_goes_to_no_neighbour(client: Client) -> None:
    """A token that has just been sent home is not sent to the same host by another scheme or port, nor to one named alike."""
    home = "https://api.fifth.example"
    auth = AxiaAuth("neighbours", "secret", base_url=home, cache=MemoryTokenCache())
    payload = {"access_token": "fresh", "expires_in": 3600}
    if client.module is requests:
        with responses.RequestsMock() as mock:
            mock.post(home + AxiaAuth.provider.token_endpoint, json=payload)
            sent = [
                auth(requests.Request("GET", place + PATH).prepare()).headers.get("Authorization")
                for place in (home, home, *NEIGHBOURS, home)
            ]
    else:
        sent = []

        def gateway(request: Any) -> Any:
            if request.method == "POST":
                return client.module.Response(200, json=payload)
            sent.append(request.headers.get("Authorization"))
            return client.module.Response(200)

        with client.open(auth, transport=client.module.MockTransport(gateway)) as send:
            for place in (home, home, *NEIGHBOURS, home):
                send("GET", place + PATH)
    assert sent == ["Bearer fresh"] * 2 + [None] * 3 + ["Bearer fresh"]
