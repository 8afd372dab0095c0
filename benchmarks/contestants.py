"""Who is measured, each set up as its documentation has it, behind one face.

A contestant hands out clients ready to call the gateway with, and its bare hot path: the requests hook, and
the httpx auth flow. What it cannot do raises `Unsupported` with the reason.
"""

from __future__ import annotations

import base64
import importlib.util
import itertools
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar
from unittest.mock import patch

import httpx
import requests
from requests.adapters import HTTPAdapter

from baas_auth_plugins import OAuth2ClientCredentialsAuth, Provider

from .by_hand import ByHand, ByHandAsync
from .gateway import TENANT, TOKEN_PATH, Gateway

__all__ = [
    "CONTESTANTS",
    "OURS",
    "STATIC",
    "Authlib",
    "BenchAuth",
    "Contestant",
    "Flow",
    "GoogleAuthNonBlocking",
    "Hook",
    "Ours",
    "OursInBackground",
    "Unsupported",
    "new_session",
    "ready",
]

Hook = Callable[[requests.PreparedRequest], object]

_numbers = itertools.count(1)


class Unsupported(Exception):  # noqa: N818  # it is no error, but an answer
    """The contestant has nothing for this; the text says why."""


@dataclass(frozen=True, slots=True)
class Flow:
    """An httpx auth flow with a fresh token.

    Args:
        auth: what a client would drive.
        before: what the contestant does ahead of the flow, at each request.
    """

    auth: Any
    before: Callable[[], Any] | None = None


def new_session(pool: int = 256) -> requests.Session:
    """Return a session that is not slowed down by this machine's proxies and .netrc."""
    return _on_loopback(requests.Session(), pool)


def _on_loopback(session: requests.Session, pool: int = 256) -> Any:
    session.trust_env = False
    session.mount("http://", HTTPAdapter(pool_maxsize=pool))
    return session


class Contestant:
    """One of those measured, with credentials that nobody else in the process has.

    Args:
        gateway: where the calls go.
    """

    name: ClassVar[str]
    distribution: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    margin: ClassVar[float] = 0
    """Seconds before its end at which a token of an hour is renewed."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.client_id = gateway.client_id(next(_numbers))

    def requests_auth(self) -> Any:
        """Return a new auth object for requests."""
        raise Unsupported("for httpx only")

    def httpx_auth(self) -> Any:
        """Return a new auth object for sync httpx clients."""
        raise Unsupported("for requests only")

    def async_httpx_auth(self) -> Any:
        """Return a new auth object for async httpx clients."""
        return self.httpx_auth()

    def session(self) -> requests.Session:
        """Return a session that authenticates its calls."""
        session = new_session()
        session.auth = self.requests_auth()
        return session

    def client(self, **options: Any) -> Any:
        """Return an httpx client that does."""
        return httpx.Client(auth=self.httpx_auth(), trust_env=False, **options)

    def async_client(self, **options: Any) -> Any:
        """Return an async one."""
        return httpx.AsyncClient(auth=self.async_httpx_auth(), trust_env=False, **options)

    def blocking_client(self, **options: Any) -> Any:
        """Return a session or, where there is none, a sync httpx client, which the options are for."""
        try:
            return self.session()
        except Unsupported:
            return self.client(timeout=30, **options)

    def hook(self) -> Hook:
        """Return what is done to each prepared request, the token fresh."""
        auth: Hook = self.requests_auth()
        auth(self._prepared())
        return auth

    def flow(self) -> Flow:
        """Return the flow that each request of a sync client goes through, the token fresh."""
        auth = self.httpx_auth()
        with httpx.Client(trust_env=False) as client:
            client.get(self.gateway.api_url, auth=auth).raise_for_status()
        return Flow(auth)

    async def async_flow(self) -> Flow:
        """Return the same of an async client."""
        auth = self.async_httpx_auth()
        async with httpx.AsyncClient(trust_env=False) as client:
            (await client.get(self.gateway.api_url, auth=auth)).raise_for_status()
        return Flow(auth)

    def _prepared(self) -> requests.PreparedRequest:
        return requests.Request("GET", self.gateway.api_url).prepare()


class _StaticAuth(requests.auth.AuthBase, httpx.Auth):
    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        r.headers["Authorization"] = self._header
        return r

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["Authorization"] = self._header
        yield request


class Static(Contestant):
    """A token that somebody else got: the limit. Clients have it in their own headers."""

    name = "static header"

    def requests_auth(self) -> _StaticAuth:
        """Return a new auth object for requests."""
        return _StaticAuth(self.gateway.issue())

    httpx_auth = requests_auth

    def session(self) -> requests.Session:
        """Return a session that authenticates its calls."""
        session = new_session()
        session.headers.update(self._header())
        return session

    def client(self, **options: Any) -> httpx.Client:
        """Return an httpx client that does."""
        return httpx.Client(headers=self._header(), trust_env=False, **options)

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        """Return an async one."""
        return httpx.AsyncClient(headers=self._header(), trust_env=False, **options)

    def _header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.gateway.issue()}"}


class BenchAuth(OAuth2ClientCredentialsAuth):
    """Authenticates calls to the benchmarks' gateway: Basic and the standard form, as the peers do."""

    provider = Provider(
        name="bench",
        env_prefix="BENCH",
        environments={"production": "https://bench.example"},
        token_endpoint=TOKEN_PATH,
    )


class Ours(Contestant):
    """This package."""

    name = "baas-auth-plugins"
    distribution = "baas-auth-plugins"
    margin = 300
    options: ClassVar[dict[str, Any]] = {}

    def requests_auth(self) -> BenchAuth:
        """Return a new auth object for requests."""
        return BenchAuth(self.client_id, self.gateway.client_secret, base_url=self.gateway.url, **self.options)

    httpx_auth = requests_auth


class OursInBackground(Ours):
    """This package, where a thread renews."""

    name = "baas-auth-plugins, background_renewal"
    options: ClassVar[dict[str, Any]] = {"background_renewal": True}


class Authlib(Contestant):
    """Its clients are sessions with a token in them; they do not fetch the first one by themselves.

    Where httpx2 is installed it takes that instead of httpx; here it takes httpx, as all others do.
    """

    name = "Authlib"
    distribution = "Authlib"
    needs = "authlib"
    margin = 60

    def _options(self) -> dict[str, Any]:
        return {
            "client_id": self.client_id,
            "client_secret": self.gateway.client_secret,
            "token_endpoint": self.gateway.token_url,
            "grant_type": "client_credentials",
            # What makes its clients fetch a token: one that has expired.
            "token": {"access_token": "expired", "token_type": "Bearer", "expires_at": 1},
        }

    def session(self) -> Any:
        """Return a session that authenticates its calls."""
        session_class = import_module("authlib.integrations.requests_client").OAuth2Session
        return _on_loopback(session_class(**self._options()))

    def client(self, **options: Any) -> Any:
        """Return an httpx client that does."""
        return self._module().OAuth2Client(**self._options(), leeway=60, trust_env=False, **options)

    def async_client(self, **options: Any) -> Any:
        """Return an async one."""
        return self._module().AsyncOAuth2Client(**self._options(), trust_env=False, **options)

    def hook(self) -> Hook:
        """Return what is done to each prepared request, the token fresh."""
        session = self.session()
        session.fetch_token()
        hook: Hook = session.token_auth
        return hook

    def flow(self) -> Flow:
        """Return the flow of a sync client, the token fresh."""
        client = self.client()
        client.fetch_token()
        return Flow(client.token_auth, lambda: client.ensure_active_token(client.token))

    async def async_flow(self) -> Flow:
        """Return the same of an async client."""
        client = self.async_client()
        await client.fetch_token()

        def before() -> Awaitable[Any]:
            found: Awaitable[Any] = client.ensure_active_token(client.token)
            return found

        return Flow(client.token_auth, before)

    @staticmethod
    def _module() -> Any:
        with warnings.catch_warnings(), patch.dict(sys.modules, {"httpx2": None}):
            warnings.simplefilter("ignore")
            return import_module("authlib.integrations.httpx_client")


class RequestsOAuth2Client(Contestant):
    """An auth object over a client object."""

    name = "requests-oauth2client"
    distribution = "requests_oauth2client"
    needs = "requests_oauth2client"
    margin = 20

    def requests_auth(self) -> Any:
        """Return a new auth object for requests."""
        module = import_module("requests_oauth2client")
        client = module.OAuth2Client(
            token_endpoint=self.gateway.token_url,
            auth=module.ClientSecretBasic(self.client_id, self.gateway.client_secret),
            session=new_session(),
            testing=True,  # or it takes nothing but https
        )
        return module.OAuth2ClientCredentialsAuth(client)


class HttpxAuth(Contestant):
    """An auth object that fetches over a blocking client of its own, in async clients, too."""

    name = "httpx-auth"
    distribution = "httpx_auth"
    needs = "httpx_auth"
    margin = 30

    def httpx_auth(self) -> Any:
        """Return a new auth object for sync httpx clients."""
        auth_class = import_module("httpx_auth").OAuth2ClientCredentials
        return auth_class(
            self.gateway.token_url,
            self.client_id,
            self.gateway.client_secret,
            client=httpx.Client(trust_env=False),
        )


class GoogleAuth(Contestant):
    """A subclass of its `Credentials`, over its own refresh machinery and session."""

    name = "google-auth"
    distribution = "google-auth"
    needs = "google.auth"
    margin = 225

    def session(self) -> Any:
        """Return a session that authenticates its calls."""
        transport = import_module("google.auth.transport.requests")
        auth_request = transport.Request(new_session())
        return _on_loopback(transport.AuthorizedSession(self._credentials(), auth_request=auth_request))

    def hook(self) -> Hook:
        """Return what is done to each prepared request, the token fresh."""
        credentials = self._credentials()
        request = import_module("google.auth.transport.requests").Request(new_session())
        credentials.refresh(request)
        return lambda r: credentials.before_request(request, r.method, r.url, r.headers)

    def _credentials(self) -> Any:
        return _google_credentials()(self.gateway.token_url, self.client_id, self.gateway.client_secret)


class GoogleAuthNonBlocking(GoogleAuth):
    """The same, where a thread refreshes."""

    name = "google-auth, non-blocking refresh"

    def _credentials(self) -> Any:
        credentials = super()._credentials()
        credentials.with_non_blocking_refresh()
        return credentials


def _google_credentials() -> type:
    base: Any = import_module("google.auth.credentials").Credentials
    helpers: Any = import_module("google.auth._helpers")
    datetime: Any = import_module("datetime")
    json: Any = import_module("json")

    class ClientCredentials(base):  # type: ignore[misc]
        def __init__(self, token_url: str, client_id: str, client_secret: str) -> None:
            super().__init__()
            self._token_url = token_url
            self._basic = _basic(client_id, client_secret)

        def refresh(self, request: Any) -> None:
            headers = {"Authorization": self._basic, "Content-Type": "application/x-www-form-urlencoded"}
            now = helpers.utcnow()
            answer = request(self._token_url, "POST", b"grant_type=client_credentials", headers)
            payload = json.loads(answer.data)
            self.token = payload["access_token"]
            self.expiry = now + datetime.timedelta(seconds=payload["expires_in"])

    return ClientCredentials


class Msal(Contestant):
    """Its `ConfidentialClientApplication` against an authority on loopback, behind an auth object of a few lines."""

    name = "msal"
    distribution = "msal"
    needs = "msal"
    margin = 300

    def requests_auth(self) -> Any:
        """Return a new auth object for requests."""
        port = self.gateway.url.rpartition(":")[2]
        authority = f"https://localhost:{port}"
        session = new_session()
        session.mount(authority, _WithoutTLS(pool_maxsize=64))
        application = import_module("msal").ConfidentialClientApplication(
            self.client_id,
            client_credential=self.gateway.client_secret,
            authority=f"{authority}/{TENANT}",
            instance_discovery=False,
            http_client=session,
        )
        return _MsalAuth(application)

    def httpx_auth(self) -> Any:
        """Return a new auth object for sync httpx clients."""
        return self.requests_auth()

    def async_httpx_auth(self) -> Any:
        """Return a new auth object for async httpx clients."""
        raise Unsupported("its calls block the event loop")


class _WithoutTLS(HTTPAdapter):
    """Carries what is addressed to https on loopback over http: msal takes no other authority."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        request.url = (request.url or "").replace("https://localhost:", "http://127.0.0.1:")
        return super().send(request, *args, **kwargs)


class _MsalAuth(requests.auth.AuthBase, httpx.Auth):
    def __init__(self, application: Any) -> None:
        self._application = application

    def _header(self) -> str:
        return f"Bearer {self._application.acquire_token_for_client(['api/.default'])['access_token']}"

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        r.headers["Authorization"] = self._header()
        return r

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["Authorization"] = self._header()
        yield request


class FiveMinuteBuffer(Contestant):
    """The client that the gateways' own pages print, its `get_token` behind an auth object of a few lines."""

    name = "five-minute buffer"
    margin = 300

    def requests_auth(self) -> _BufferedAuth:
        """Return a new auth object for requests."""
        return _BufferedAuth(self.gateway.token_url, self.client_id, self.gateway.client_secret)


class _BufferedAuth(requests.auth.AuthBase):
    def __init__(self, token_url: str, client_id: str, client_secret: str) -> None:
        self.token_url = token_url
        self.client_id = client_id
        self.client_secret = client_secret
        self.token = ""
        self.expires_at = 0.0

    def get_token(self) -> str:
        buffer_seconds = 5 * 60
        if self.token and time.time() < self.expires_at - buffer_seconds:
            return self.token
        response = requests.post(
            self.token_url,
            headers={"Authorization": _basic(self.client_id, self.client_secret)},
            data={"grant_type": "client_credentials"},
            timeout=10,
        )
        response.raise_for_status()
        data = response.json()
        self.token = data["access_token"]
        self.expires_at = time.time() + data["expires_in"]
        return self.token

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        r.headers["Authorization"] = f"Bearer {self.get_token()}"
        return r


class SnapshotByHand(Contestant):
    """What the hot path costs at the least, if it is to do what the package's does."""

    name = "by hand: snapshot, two clocks, origin check, 401 hook"
    margin = 300

    def requests_auth(self) -> ByHand:
        """Return a new auth object for requests."""
        return ByHand(self.gateway.url, self.gateway.token_url, self.client_id, self.gateway.client_secret)

    httpx_auth = requests_auth

    def async_httpx_auth(self) -> ByHandAsync:
        """Return a new auth object for async httpx clients."""
        return ByHandAsync(self.gateway.url, self.gateway.token_url, self.client_id, self.gateway.client_secret)


def _basic(client_id: str, client_secret: str) -> str:
    return "Basic " + base64.b64encode(f"{client_id}:{client_secret}".encode()).decode()


STATIC = Static
OURS = Ours
CONTESTANTS: tuple[type[Contestant], ...] = (
    Static,
    Ours,
    Authlib,
    RequestsOAuth2Client,
    HttpxAuth,
    GoogleAuth,
    Msal,
    FiveMinuteBuffer,
    SnapshotByHand,
)


def ready(contestant: type[Contestant]) -> type[Contestant]:
    """Return the contestant if what it needs is installed.

    Raises:
        Unsupported: it is not.
    """
    needed = contestant.needs
    top = needed.partition(".")[0]
    if needed and (importlib.util.find_spec(top) is None or importlib.util.find_spec(needed) is None):
        raise Unsupported("not installed")
    return contestant
