"""What the endpoints do: issue, introspect and revoke tokens, and protect the APIs."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from .._oauth.provider import Provider
from ._assertions import check_assertion
from ._dialects import dialect_of
from ._messages import Kind, Request, Response, json_response
from ._refusal import RefusedError, malformed, unauthorized
from ._routes import Route, grant
from ._shapes import shape_of
from ._token_request import Claim, basic_claim, check_headers, read_claim, read_named_claim
from ._tokens import IssuedToken, TokenStore, iso, json_number

__all__ = ["Endpoints", "issued", "refused"]

_MOST_WINDOWS = 1000


class Endpoints:
    """The credentials, the tokens and the rate windows. Not thread-safe by itself.

    Its public attributes may be changed at any time. The next request sees the change.
    """

    def __init__(
        self,
        *,
        client_id: str,
        client_secret: str,
        expires_in: float | None,
        single_active_token: bool,
        enforce_rate_limits: bool,
        clock: Callable[[], float],
    ) -> None:
        self.client_id = client_id
        self.client_secret = client_secret
        self.expires_in = expires_in
        self.single_active_token = single_active_token
        self.enforce_rate_limits = enforce_rate_limits
        self._clock = clock
        self._tokens = TokenStore()
        self._windows: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()

    def _answer(self, request: Request, route: Route, provider: Provider | None, *, expired: bool = False) -> Response:
        try:
            if route.kind == "api":
                return self._api(request, provider, expired=expired)
            if provider is None:
                raise RefusedError(404, "not_found", "no gateway here has this path")
            if request.method != "POST":
                raise RefusedError(405, "invalid_request", "the method must be POST")
            check_headers(request)
            if route.kind == "token":
                return self._token(request, provider)
            return self._inspect(request, provider, revoke=route.kind == "revoke")
        except RefusedError as refusal:
            return self._refuse(refusal, route.kind, provider)

    def _token(self, request: Request, provider: Provider) -> Response:
        shape = shape_of(provider)
        claim = read_claim(request, shape) if shape else read_named_claim(request, self.client_id)
        client_id = self.client_id if claim.client_id is None else claim.client_id
        self._check_rate(provider, client_id)
        self._check_client(claim, request)
        scope = grant(provider, claim.scope)
        if self.single_active_token:
            for previous in self._tokens.valid(self._clock(), provider=provider.name, client_id=client_id):
                previous.revoked = True
        token = self._tokens.issue(
            provider.name,
            client_id,
            scope,
            now=self._clock(),
            expires_in=provider.default_expires_in if self.expires_in is None else self.expires_in,
            opaque=dialect_of(provider).opaque_tokens,
        )
        return issued(token, provider)

    def _check_rate(self, provider: Provider, client_id: str) -> None:
        if not self.enforce_rate_limits or provider.token_rate_limit is None:
            return
        most, seconds = provider.token_rate_limit
        now = self._clock()
        window = self._windows.setdefault((provider.name, client_id), deque())
        if len(self._windows) > _MOST_WINDOWS:
            self._windows.popitem(last=False)
        while window and window[0] <= now - seconds:
            window.popleft()
        if len(window) >= most:
            wait = max(1, math.ceil(window[0] + seconds - now))
            raise RefusedError(429, "rate_limit_exceeded", retry_after=wait)
        window.append(now)

    def _check_client(self, claim: Claim, request: Request) -> None:
        if claim.client_id not in (self.client_id, None):
            raise unauthorized("the client_id is not the sandbox's")
        if claim.client_secret not in (self.client_secret, None):
            raise unauthorized("the client_secret is not the sandbox's")
        if claim.assertion is not None:
            check_assertion(claim.assertion, request, self.client_id, self.client_secret, self._clock())

    def _inspect(self, request: Request, provider: Provider, *, revoke: bool) -> Response:
        """Axia's introspect (RFC 7662) and revoke (RFC 7009), the token in the query."""
        if request.body or request.headers.get("content-type", "application/json") != "application/json":
            raise malformed("no body is allowed, and no Content-Type but application/json")
        parameters = parse_qsl(request.query, keep_blank_values=True)
        if [name for name, _ in parameters] != ["token"] or not parameters[0][1]:
            raise malformed("the query holds exactly one token")
        self._check_client(basic_claim(request), request)
        token = self._tokens.find(parameters[0][1])
        if token is not None and token.provider != provider.name:
            token = None
        return self._revoke(token) if revoke else json_response(200, self._introspect(token))

    def _introspect(self, token: IssuedToken | None) -> dict[str, Any]:
        if token is None:
            return {"active": False, "reason": "Token not found"}
        if token.revoked:
            return {"active": False, "reason": "Token was revoked"}
        if self._clock() >= token.expires_at:
            return {"active": False, "reason": f"Token expired on {iso(token.expires_at)}"}
        return {
            "active": True,
            "client_id": token.client_id,
            "token_type": "Bearer",
            "exp": int(token.expires_at),
            "iat": int(token.issued_at),
            "issued_at": iso(token.issued_at),
            "expires_at": iso(token.expires_at),
            "scope": token.scope,
        }

    def _revoke(self, token: IssuedToken | None) -> Response:
        if token is None or token.revoked:
            raise RefusedError(404, "unknown_token", "Token not found or already revoked")
        token.revoked = True
        content = {"status": "Token revoked successfully", "revoked_at": iso(self._clock())}
        return json_response(200, {**content, "token_id": token.token_id})

    def _presented(self, request: Request) -> IssuedToken | None:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        return self._tokens.find(value) if scheme == "Bearer" else None

    def _api(self, request: Request, provider: Provider | None, *, expired: bool) -> Response:
        """Answer a request to a path that wants a Bearer token (RFC 6750): echo what came, but no credentials."""
        token = self._presented(request)
        if not request.headers.get("authorization"):
            raise RefusedError(401, "missing_token", "Token not provided")
        if token is None:
            raise _invalid_token("the token was not issued here")
        if token.revoked:
            raise _invalid_token("the token was revoked")
        if provider is None or token.provider != provider.name:
            raise _invalid_token(f"the token was issued by {token.provider}")
        if expired or self._clock() >= token.expires_at:
            raise RefusedError(401, "expired_token", "Expired token")
        content = {
            "provider": token.provider,
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "content_type": request.headers.get("content-type"),
            "body": request.body.decode(errors="replace"),
            "body_length": len(request.body),
            "body_sha256": hashlib.sha256(request.body).hexdigest(),
            "scope": token.scope,
        }
        return json_response(200, content)

    def _refuse(self, refusal: RefusedError, kind: Kind, provider: Provider | None) -> Response:
        return refused(refusal, kind, provider, self._clock())


def refused(refusal: RefusedError, kind: Kind, provider: Provider | None, now: float) -> Response:
    """Return the answer that refuses a request, as the gateway's page shows it."""
    dialect = dialect_of(provider)
    headers: list[tuple[str, str]] = []
    if refusal.status == 401 and (kind == "api" or dialect.challenges_client):
        headers.append(("WWW-Authenticate", "Bearer" if kind == "api" else "Basic"))
    if refusal.status == 405:
        headers.append(("Allow", "POST"))
    if refusal.retry_after is not None:
        headers.append(("Retry-After", str(refusal.retry_after)))
    content = dialect.error(refusal, iso(now), provider)
    return replace(json_response(refusal.status, content, tuple(headers)), problem=refusal.why)


def issued(token: IssuedToken, provider: Provider) -> Response:
    """Return the answer that issues a token, as the gateway's page shows it."""
    content = _token_response(token, shows_issued_at=dialect_of(provider).shows_issued_at)
    if provider.read_token_response is not None:
        content |= _further_names(token)
    return json_response(200, content)


def _invalid_token(why: str) -> RefusedError:
    return RefusedError(401, "invalid_token", "Invalid token", why=why)


def _token_response(token: IssuedToken, *, shows_issued_at: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"access_token": token.access_token, "token_type": "Bearer"}
    content["expires_in"] = json_number(token.expires_in)
    if shows_issued_at:
        content["issued_at"] = iso(token.issued_at)
    return {**content, "scope": token.scope} if token.scope else content


def _further_names(token: IssuedToken) -> dict[str, Any]:
    """Return the token under the names that gateways use which have their own, for `read_token_response`."""
    expires_at = iso(token.expires_at)
    return {
        "accessToken": token.access_token,
        "token": token.access_token,
        "tokenType": "Bearer",
        "expiresIn": json_number(token.expires_in),
        "expiresAt": expires_at,
        "expireAt": expires_at,
        "expires_at": expires_at,
        "expire_at": expires_at,
    }
