"""The page and the control API of a running sandbox, for people and for programs in other languages.

Everything is JSON below ``/_sandbox/``; ``GET /_sandbox/`` lists it. Web pages of other origins are refused:
the Host header must be the sandbox's own (against DNS rebinding), an Origin its own, and a body must be JSON
(which no form can send). Requests here count as no gateway's traffic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from .._oauth.provider import Provider
from ._faults import Fault, fault_from_json
from ._gateway import Exchange
from ._messages import Request, Response, json_response
from ._page import page
from ._shapes import Shape, shape_of
from ._tokens import IssuedToken

if TYPE_CHECKING:
    from ._sandbox import Sandbox

__all__ = ["PREFIX", "Control", "without_port"]

PREFIX = "/_sandbox/"
_MOST_SHOWN = 500  # requests, and tokens, in one answer
_SETTINGS: Mapping[str, tuple[type, ...]] = {
    "expires_in": (int, float, type(None)),
    "single_active_token": (bool,),
    "enforce_rate_limits": (bool,),
}


class _ControlError(Exception):
    """A control request that is refused: an HTTP status, and what to do about it."""


class Control:
    """Serves the page and the control API beside the gateways of one origin.

    Args:
        sandbox: what is controlled. It answers all other requests.
        names: the sandbox's host names, with a port if it is not its own.
    """

    def __init__(self, sandbox: Sandbox, names: tuple[str, ...]) -> None:
        self._sandbox = sandbox
        self._names = names
        self._rotations = 1

    def begin(self, request: Request) -> Exchange:
        """Answer a control request, or hand the request to the gateways."""
        is_page = request.path == "/" and request.method == "GET" and _wants_page(request)
        if not is_page and not request.path.startswith(PREFIX):
            return self._sandbox.begin(request)
        try:
            self._check_sender(request)
            return Exchange(None, page() if is_page else self._answer(request))
        except _ControlError as error:
            status, problem = error.args
            return Exchange(None, json_response(status, {"error": problem}))
        except ValueError as error:
            return Exchange(None, json_response(400, {"error": str(error)}))
        except RuntimeError as error:  # The sandbox was closed meanwhile, and opens no further origin.
            return Exchange(None, json_response(503, {"error": str(error)}))

    def finish(self, exchange: Exchange) -> None:
        """Note that an answer is sent now, or that its client is gone."""
        self._sandbox.finish(exchange)

    def _check_sender(self, request: Request) -> None:
        """Refuse what a web page of another origin can send."""
        own = urlsplit(self._sandbox.url)
        hosts = {name if _has_port(name) else f"{name}:{own.port}" for name in self._names}
        if own.port == {"http": 80, "https": 443}[own.scheme]:
            hosts |= {name for name in self._names if not _has_port(name)}
        host = request.headers.get("host", "").lower()
        if host not in hosts:
            raise _ControlError(403, f"the Host header must be one of {', '.join(sorted(hosts))}; see hostnames=")
        if request.headers.get("origin", f"{own.scheme}://{host}") != f"{own.scheme}://{host}":
            raise _ControlError(403, "web pages of other origins may not control the sandbox")
        if request.path == "/":
            return  # It holds nothing but the page, so a link from elsewhere may lead to it.
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise _ControlError(403, "web pages of other origins may not control the sandbox")
        media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if request.method != "GET" and media_type != "application/json":
            raise _ControlError(415, "Content-Type must be application/json")

    def _answer(self, request: Request) -> Response:
        methods = _ENDPOINTS.get(request.path.removeprefix(PREFIX))
        if methods is None:
            raise _ControlError(404, f"no such path; GET {PREFIX} lists them")
        if request.method not in methods:
            allowed = ", ".join(methods)
            return json_response(405, {"error": f"the method must be one of {allowed}"}, (("Allow", allowed),))
        content = methods[request.method][1](self, request)
        return Response(204) if content is None else _no_store(json_response(200, content))

    # -- what can be read

    def _index(self, _request: Request) -> dict[str, Any]:
        """This list."""
        return {
            f"{method} {PREFIX}{path}": what for path, all_ in _ENDPOINTS.items() for method, (what, _) in all_.items()
        }

    def _state(self, request: Request) -> dict[str, Any]:
        sandbox = self._sandbox
        return {
            "now": sandbox.now(),
            "url": sandbox.url,
            "client_id": sandbox.client_id,
            "client_secret": sandbox.client_secret,
            "settings": self._settings(request),
            **self._gateways(request),
            **self._tokens(request),
            **self._faults(request),
            **self._requests(request),
        }

    def _gateways(self, _request: Request) -> dict[str, Any]:
        return {"gateways": [_gateway_json(self._sandbox, provider) for provider in self._sandbox.providers]}

    def _environment(self, _request: Request) -> dict[str, Any]:
        sandbox = self._sandbox
        return {"environment": {provider.name: sandbox.environment(provider) for provider in sandbox.providers}}

    def _tokens(self, _request: Request) -> dict[str, Any]:
        now = self._sandbox.now()
        return {"tokens": [_token_json(token, now) for token in self._sandbox.tokens[-_MOST_SHOWN:]]}

    def _faults(self, _request: Request) -> dict[str, Any]:
        return {"faults": [_fault_json(fault) for fault in self._sandbox.faults]}

    def _requests(self, request: Request) -> dict[str, Any]:
        after = parse_qs(request.query).get("after", ["0"])[0]
        if not (after.isascii() and after.isdecimal() and len(after) < 20):
            raise ValueError("after must be the number of a request")
        first, last, records = self._sandbox.requests_after(int(after))
        return {"first": first, "last": last, "requests": [record.masked() for record in records[-_MOST_SHOWN:]]}

    def _stats(self, _request: Request) -> dict[str, Any]:
        requests: dict[str, dict[str, int]] = {}
        for (provider, kind), number in self._sandbox.counts().items():
            requests.setdefault(provider or "other", {})[kind] = number
        return {"requests": requests, "max_in_flight": self._sandbox.max_in_flight}

    def _settings(self, _request: Request) -> dict[str, Any]:
        return {name: getattr(self._sandbox, name) for name in _SETTINGS}

    def _jwks(self, _request: Request) -> dict[str, Any]:
        return self._sandbox.jwks()

    # -- what can be done

    def _inject(self, request: Request) -> None:
        self._sandbox.inject(fault_from_json(_content(request, required=True)))

    def _clear_faults(self, _request: Request) -> None:
        self._sandbox.clear_faults()

    def _clear_requests(self, _request: Request) -> None:
        self._sandbox.clear_requests()

    def _clear(self, _request: Request) -> None:
        self._sandbox.clear()

    def _revoke(self, request: Request) -> dict[str, Any]:
        return {"revoked": self._sandbox.revoke(**_strings(request, "digest", "provider"))}

    def _expire(self, request: Request) -> dict[str, Any]:
        return {"expired": self._sandbox.expire(**_strings(request, "digest", "provider"))}

    def _rotate(self, request: Request) -> dict[str, Any]:
        self._rotations += 1
        secret = _strings(request, "client_secret").get("client_secret", f"your-client-secret-{self._rotations}")
        self._sandbox.rotate_secret(secret)
        return {"client_secret": secret}

    def _change(self, request: Request) -> dict[str, Any]:
        content = _object(request, *_SETTINGS)
        for name, value in content.items():
            if type(value) not in _SETTINGS[name] or (name == "expires_in" and not (value is None or 0 < value < 1e9)):
                raise ValueError(f"{name} has a wrong value")
        for name, value in content.items():
            setattr(self._sandbox, name, value)
        return self._settings(request)


_Handler = Callable[[Control, Request], dict[str, Any] | None]

_ENDPOINTS: Mapping[str, Mapping[str, tuple[str, _Handler]]] = {
    "": {"GET": ("this list", Control._index)},
    "state": {"GET": ("all that the page shows; ?after=NUMBER leaves out older requests", Control._state)},
    "gateways": {"GET": ("the gateways, with the shape of their token requests", Control._gateways)},
    "environment": {"GET": ("the variables of each gateway for its from_env()", Control._environment)},
    "tokens": {"GET": ("the valid tokens, by digest", Control._tokens)},
    "revoke": {"POST": ("revoke all valid tokens, or those of a digest or provider", Control._revoke)},
    "expire": {"POST": ("let all valid tokens expire now, or those of a digest or provider", Control._expire)},
    "secret": {"POST": ("rotate the client secret, to client_secret or to a new sample", Control._rotate)},
    "faults": {
        "GET": ("the faults that have not happened yet", Control._faults),
        "POST": ("inject a fault: a JSON object with the fields of Fault", Control._inject),
        "DELETE": ("forget the faults that have not happened yet", Control._clear_faults),
    },
    "requests": {
        "GET": ("the latest 500 requests, secrets masked; ?after=NUMBER leaves out older ones", Control._requests),
        "DELETE": ("forget the requests and their counts", Control._clear_requests),
    },
    "stats": {"GET": ("how many requests of each kind each gateway had", Control._stats)},
    "settings": {
        "GET": (f"the settings: {', '.join(_SETTINGS)}", Control._settings),
        "POST": ("change settings", Control._change),
    },
    "jwks": {"GET": ("the JWK set that verifies the JWTs", Control._jwks)},
    "clear": {"POST": ("forget requests, faults, tokens and rate windows", Control._clear)},
}


def _wants_page(request: Request) -> bool:
    return "authorization" not in request.headers and "text/html" in request.headers.get("accept", "")


def _has_port(name: str) -> bool:
    return ":" in name.rpartition("]")[2]


def without_port(name: str) -> str:
    """Return a host name as it stands in a URL, without its port."""
    return name.rpartition(":")[0] if _has_port(name) else name


def _no_store(response: Response) -> Response:
    headers = (*response.headers, ("Cache-Control", "no-store"), ("Cross-Origin-Resource-Policy", "same-origin"))
    return Response(response.status, headers, response.body)


def _content(request: Request, *, required: bool = False) -> Any:
    if not request.body and not required:
        return {}
    try:
        return json.loads(request.body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None


def _object(request: Request, *names: str) -> dict[str, Any]:
    content = _content(request)
    if not isinstance(content, dict) or not content.keys() <= set(names):
        raise ValueError(f"the body is a JSON object with at most {', '.join(names)}")
    return content


def _strings(request: Request, *names: str) -> dict[str, str]:
    content = _object(request, *names)
    if not all(isinstance(value, str) and value for value in content.values()):
        raise ValueError(f"{', '.join(names)} must be text")
    return content


def _gateway_json(sandbox: Sandbox, provider: Provider) -> dict[str, Any]:
    shape = shape_of(provider)
    origin = sandbox.origin_of(provider)
    example = (shape or Shape("form", ("grant_type",), basic=True)).example(
        provider, sandbox.client_id, sandbox.client_secret
    )
    return {
        "name": provider.name,
        "url": origin,
        "token_endpoint": provider.token_endpoint,
        "request": example.as_text() if shape else f"POST {provider.token_endpoint}\n\n(any that names the client)",
        "curl": example.as_curl(origin, sandbox.curl_options),
        "expires_in": provider.default_expires_in if sandbox.expires_in is None else sandbox.expires_in,
        "scope": provider.scope,
        "token_rate_limit": provider.token_rate_limit,
    }


def _token_json(token: IssuedToken, now: float) -> dict[str, Any]:
    return {
        "digest": token.digest,
        "provider": token.provider,
        "client_id": token.client_id,
        "scope": token.scope,
        "issued_at": token.issued_at,
        "expires_at": token.expires_at,
        "remaining": round(token.expires_at - now, 3),
    }


def _fault_json(fault: Fault) -> dict[str, Any]:
    content = {field.name: getattr(fault, field.name) for field in fields(fault)}
    return {**content, "body": None if fault.body is None else f"({len(fault.body)} bytes)"}
