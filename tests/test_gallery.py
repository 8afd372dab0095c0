"""The gallery: each declaration of docs/gateways runs against the sandbox, through every client."""

from __future__ import annotations

import ast
import json
import re
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import anyio
import httpx
import httpx2
import pytest
import requests
from conftest import Auth, Client, FakeClock

import baas_auth_plugins
from baas_auth_plugins import MemoryTokenCache, OAuth2ClientCredentialsAuth
from baas_auth_plugins.cli import main
from baas_auth_plugins.sandbox import Fault, Sandbox

pytestmark = pytest.mark.timeout(60)

GALLERY = Path(__file__).parent.parent / "docs" / "gateways"
MARK = "From public documentation; not tried against the gateway."
LEEWAY = 300  # seconds; the package's default
FIVE_YEARS = 5 * 365 * 86_400  # later than urllib3 believes the fake clock to be


class Page(NamedTuple):
    """One page of the gallery."""

    name: str
    text: str

    @property
    def blocks(self) -> list[str]:
        """The declaration, and a call."""
        return re.findall(r"^```python\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE)

    @property
    def tls(self) -> Any:
        """What the sandbox serves: with a client certificate if the gateway requires one."""
        return "mutual" if re.search(r"^\| Mutual TLS \| required", self.text, re.MULTILINE) else False

    def load(self) -> tuple[ModuleType, Auth]:
        """Return a module of the declaration, and its class."""
        module = ModuleType(f"gallery_{self.name.replace('-', '_')}")
        exec(compile(self.blocks[0], f"{self.name}.md", "exec"), vars(module))  # noqa: S102  # our own page
        classes = (value for value in vars(module).values() if isinstance(value, type))
        (found,) = (cls for cls in classes if cls.__module__ == module.__name__)
        return module, found


PAGES = [Page(path.stem, path.read_text(encoding="utf-8")) for path in sorted(GALLERY.glob("*.md"))]
INDEX = next(page.text for page in PAGES if page.name == "index")
PAGES = [page for page in PAGES if page.name != "index"]

ID, SECRET, GRANT, SCOPE = "client_id", "client_secret", "grant_type", "scope"
# As the gateways' pages show the token request: its path, then where its parameters are, and which ones.
# "Basic" is in front where there is an Authorization header.
WIRE: dict[str, tuple[str, str, set[str]]] = {
    "avista-standard": ("/api/auth/token", "JSON", {"clientId", "clientSecret"}),
    "banco-do-brasil": ("/oauth/token", "Basic form", {GRANT, SCOPE}),
    "bs2-products": ("/auth/oauth/v2/token", "form", {GRANT, SCOPE, ID, SECRET}),
    "btg": ("/oauth2/token", "Basic form", {GRANT, SCOPE}),
    "c6": ("/v1/auth/", "form", {GRANT, ID, SECRET}),
    "caixa": ("/auth/realms/internet/protocol/openid-connect/token", "form", {GRANT, ID, SECRET}),
    "celcoin": ("/v5/token", "form", {GRANT, ID, SECRET}),
    "cora": ("/token", "form", {GRANT, ID}),
    "efi": ("/oauth/token", "Basic JSON", {GRANT}),
    "fitbank": ("/client/auth", "JSON", {ID, SECRET, "scopes"}),
    "inter": ("/oauth/v2/token", "form", {GRANT, SCOPE, ID, SECRET}),
    "itau": ("/api/oauth/token", "form", {GRANT, ID, SECRET}),
    "mercado-pago": ("/oauth/token", "JSON", {GRANT, ID, SECRET}),
    "nuvem-fiscal": ("/oauth/token", "form", {GRANT, SCOPE, ID, SECRET}),
    "onz": ("/api/v2/oauth/token", "JSON", {"clientId", "clientSecret", "grantType", SCOPE}),
    "open-finance-brasil": ("/token", "form", {GRANT, SCOPE, "client_assertion", "client_assertion_type"}),
    "pagbank": ("/pix/oauth2", "Basic JSON", {GRANT, SCOPE}),
    "santander": ("/auth/oauth/v2/token", "form", {GRANT, ID, SECRET}),
    "serpro": ("/token", "Basic form", {GRANT}),
    "sicoob": ("/auth/realms/cooperado/protocol/openid-connect/token", "form", {GRANT, SCOPE, ID}),
    "sicredi": ("/oauth/token", "Basic query", {GRANT, SCOPE}),
    "transfeera": ("/authorization", "JSON", {GRANT, ID, SECRET}),
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def set_environment(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, cls: Auth) -> None:
    for name, value in sandbox.environment(cls).items():
        monkeypatch.setenv(name, value)


@contextmanager
def opened(client: Client, cls: Auth, sandbox: Sandbox, tls: Any) -> Iterator[Callable[[str], int]]:
    """Open a client with its auth object; it has the sandbox's certificates if `tls` is set."""
    if client.module is requests:
        with requests.Session() as session:
            if tls:
                session.verify, session.cert = sandbox.ca_file, sandbox.client_cert
            auth = cls.from_env(cache=MemoryTokenCache(), session=session)

            def get(url: str) -> int:
                if client.backend is not None:
                    anyio.run(auth.aget_token, backend=client.backend)
                return session.get(url, auth=auth, timeout=10).status_code

            yield get
        return
    options: dict[str, Any] = {}
    if tls:
        options["verify"] = ssl.create_default_context(cafile=sandbox.ca_file)
        options["verify"].load_cert_chain(*sandbox.client_cert)
    with client.open(cls.from_env(cache=MemoryTokenCache()), **options) as send:
        yield lambda url: send("GET", url).status


@each_page
@pytest.mark.parametrize("module", [requests, httpx, httpx2], ids=lambda module: module.__name__)
@pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
@pytest.mark.pairwise
def test_each_declaration_runs(
    page: Page,
    module: ModuleType,
    backend: str | None,
    clock: FakeClock,
    new_sandbox: Callable[..., Sandbox],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cold call, a renewal and a healed 401 take one token request each, and the gateway refuses none."""
    clock.step_wall(FIVE_YEARS)
    sandbox, (_, cls) = new_sandbox(tls=page.tls), page.load()
    set_environment(monkeypatch, sandbox, cls)
    url, lifetime = f"{sandbox.url_for(cls)}/payments", cls.provider.default_expires_in
    with opened(Client(module, backend), cls, sandbox, page.tls) as get:
        assert get(url) == 200
        clock.advance(lifetime - min(LEEWAY, lifetime / 2) + 1)
        assert get(url) == 200
        clock.advance(61)  # Caixa allows one token request in 60 s
        sandbox.revoke()
        assert get(url) == 200
    assert [(record.kind, record.status) for record in sandbox.requests] == [
        *[("token", 200), ("api", 200)] * 2,
        *[("api", 401), ("token", 200), ("api", 200)],
    ]


@each_page
def test_each_call_runs(
    page: Page, new_sandbox: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The call of a page works as it stands, but for the host: with the variables set and the certificate in place."""
    sandbox, (module, cls) = new_sandbox(tls=page.tls), page.load()
    set_environment(monkeypatch, sandbox, cls)
    monkeypatch.chdir(tmp_path)
    with Sandbox(tls="mutual") as authority:
        for source, name in zip(
            (sandbox if page.tls else authority).client_cert, ("certificate.pem", "certificate.key"), strict=True
        ):
            shutil.copy(source, name)
    call = re.sub(r'https://[^/"]+', sandbox.url_for(cls), page.blocks[1])
    exec(compile(call, f"{page.name}.md", "exec"), vars(module))  # noqa: S102  # our own page
    vars(module)["session"].close()
    assert [(record.kind, record.status) for record in sandbox.requests] == [("token", 200), ("api", 200)]


@each_page
def test_each_token_request_is_the_documented_one(
    page: Page, new_sandbox: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path, place and names of the parameters are those of the gateway's page, written down here by hand."""
    sandbox, (_, cls) = new_sandbox(), page.load()
    set_environment(monkeypatch, sandbox, cls)
    cls.from_env(cache=MemoryTokenCache()).get_token()
    (sent,) = sandbox.requests
    path, place, names = WIRE[page.name]
    body = sent.body.decode()
    parameters = json.loads(body) if place.endswith("JSON") else dict(parse_qsl(sent.query or body))
    assert (sent.method, sent.path, set(parameters)) == ("POST", path, names)
    assert bool(sent.query) == place.endswith("query") != bool(body)
    assert sent.headers.get("authorization", "").startswith("Basic ") == place.startswith("Basic")
    assert sent.headers["content-type"].endswith("json" if place.endswith("JSON") else "x-www-form-urlencoded")


@each_page
def test_each_page_is_short_and_says_what_it_is(page: Page) -> None:
    """A declaration is a class of at most 13 lines, which the package does not have; its page is marked."""
    _, cls = page.load()
    (node,) = (node for node in ast.parse(page.blocks[0]).body if isinstance(node, ast.ClassDef))
    assert node.end_lineno is not None
    assert node.end_lineno - node.lineno < 13
    assert [type(one) for one in node.body] == [ast.Assign]
    assert cls.__name__ not in baas_auth_plugins.__all__
    assert page.text.splitlines()[2] == MARK
    for row in ("Token lifetime", "Token requests", "Scopes", "Mutual TLS", "API calls also want", "Source"):
        assert re.search(rf"^\| {row} \| .+ \|$", page.text, re.MULTILINE), row
    stated = re.search(r"^\| Token lifetime \| (?:about )?(\d+) s \|$", page.text, re.MULTILINE)
    if stated and "default_expires_in" in page.blocks[0]:
        assert int(stated[1]) == cls.provider.default_expires_in


def test_the_index_lists_each_page() -> None:
    """The table of the index has a row for each page."""
    assert sorted(re.findall(r"^\| \[.+?\]\((\S+)\.md\)", INDEX, re.MULTILINE)) == [page.name for page in PAGES]


@each_page
def test_check_works_with_each_declaration(
    page: Page,
    new_sandbox: Callable[..., Sandbox],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`baas-auth check module:Class` gets a token from the sandbox, with the variables and the certificate."""
    sandbox, (_, cls) = new_sandbox(tls=page.tls), page.load()
    set_environment(monkeypatch, sandbox, cls)
    (tmp_path / "gallery_of_mine.py").write_text(page.blocks[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    certificate, key = sandbox.client_cert if page.tls else ("", "")
    options = ["--cert", certificate, "--key", key] if page.tls else []
    monkeypatch.delitem(sys.modules, "gallery_of_mine", raising=False)  # of the page before
    code = main(["check", f"gallery_of_mine:{cls.__name__}", *options])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    assert printed.out.startswith(f"{cls.provider.name}: ok\n")


def test_avista_answers_201(new_sandbox: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard API's 201 is a token response; so is any 2xx."""
    sandbox, (_, cls) = new_sandbox(), next(page for page in PAGES if page.name == "avista-standard").load()
    set_environment(monkeypatch, sandbox, cls)
    body = b'{"access_token": "abc", "token_type": "Bearer", "expires_in": 1800}'
    sandbox.url_for(cls)
    sandbox.inject(Fault("body", "token", status=201, body=body))
    token = cls.from_env(cache=MemoryTokenCache()).get_token()
    assert (token.access_token, token.expires_in) == ("abc", pytest.approx(1800, abs=2))


def test_products_of_bs2_have_tokens_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relatives of a class keep what they do not replace: endpoint, limit and variables."""
    _, cls = next(page for page in PAGES if page.name == "bs2-products").load()
    assert issubclass(cls, OAuth2ClientCredentialsAuth)
    assert cls.provider.token_endpoint == baas_auth_plugins.BS2Auth.provider.token_endpoint
    assert cls.provider.token_rate_limit == (10, 60)
    assert cls.provider.identity != baas_auth_plugins.BS2Auth.provider.identity
