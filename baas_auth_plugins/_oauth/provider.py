"""A gateway as data: where it is, how its clients authenticate, what it allows. Checked when it is declared."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..exceptions import ConfigurationError
from .origins import parse_origin

ClientAuthMethod = str | Callable[[Any, str, str, Any, str], tuple[str, Any, str]]
"""The name of a method, or a function ``(client, method, uri, headers, body)`` as Authlib's `ClientAuth` takes."""

TokenRequestFormat = Literal["form", "json", "query", "empty"]

_METHODS = ("client_secret_basic", "client_secret_post", "none", "private_key_jwt", "client_secret_jwt")
_FORMATS = ("form", "json", "query", "empty")
_IN_PARAMETERS = ("client_secret_post", "private_key_jwt", "client_secret_jwt")
_SCOPE_MODES = ("required", "optional", "assigned")


@dataclass(frozen=True, slots=True)
class Provider:
    """What the package knows of one gateway.

    Args:
        name: short lower-case name, as the command line and the events show it.
        env_prefix: what the environment variables of ``from_env`` begin with.
        environments: name to origin of the token endpoint. Holds ``"production"``, or is empty: then each auth object
            needs a `base_url`.
        token_endpoint: path of the token endpoint (RFC 6749 section 3.2).
        token_endpoint_auth_method: how the client authenticates there (RFC 6749 section 2.3, RFC 7523, RFC 8705):
            ``"client_secret_basic"``, ``"client_secret_post"``, ``"none"``, ``"private_key_jwt"``,
            ``"client_secret_jwt"``, or a function that Authlib's `ClientAuth` accepts. A function must be at the top
            level of a module, or an object with a stable repr: it is part of the cache key. It gets the body in the
            `token_request_format`, and what it returns is sent.
        token_request_format: ``"form"``; ``"json"``; ``"query"`` (parameters in the URL, no body); ``"empty"`` (no
            parameters and no body, with the content type of JSON).
        scope: ``"required"`` where each token request names scopes, ``"optional"`` where it may, ``"assigned"`` where
            the gateway decides and the caller can only check.
        default_expires_in: a token's lifetime in seconds where the response does not state it.
        token_rate_limit: (requests, seconds) that the token endpoint allows per client, or None.
        introspection_endpoint: path (RFC 7662), or None where the gateway has none.
        revocation_endpoint: path (RFC 7009), or None where the gateway has none.
        api_origins: name of an environment to the further origins of its API, which also get the token.
        read_token_response: function from the response's JSON object to one with the names of RFC 6749 section 5.1,
            for a gateway that uses others. The same rules as for a method's function.

    Raises:
        ConfigurationError: a field is wrong; the message names it.
    """

    name: str
    env_prefix: str
    environments: Mapping[str, str]
    token_endpoint: str
    token_endpoint_auth_method: ClientAuthMethod = "client_secret_basic"
    token_request_format: TokenRequestFormat = "form"
    scope: Literal["required", "optional", "assigned"] = "assigned"
    default_expires_in: float = 3600
    token_rate_limit: tuple[int, float] | None = None
    introspection_endpoint: str | None = None
    revocation_endpoint: str | None = None
    api_origins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    read_token_response: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None
    identity: str = field(init=False, repr=False, compare=False)
    """The whole declaration as text, the same in each process: a part of the cache key."""

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_origins()
        method = self.token_endpoint_auth_method
        if not callable(method) and method not in _METHODS:
            problem = f"must be one of {', '.join(_METHODS)}, or a function, not {method!r}"
            raise self._wrong("token_endpoint_auth_method", problem)
        if self.token_request_format not in _FORMATS:
            problem = f"must be one of {', '.join(_FORMATS)}, not {self.token_request_format!r}"
            raise self._wrong("token_request_format", problem)
        if self.token_request_format == "empty" and method in _IN_PARAMETERS:
            raise self._wrong("token_request_format", f"must not be empty with {method}, which sends parameters")
        if self.token_request_format == "query" and method == "client_secret_post":
            raise self._wrong("token_request_format", "must not be query with client_secret_post: URLs are logged")
        if self.scope not in _SCOPE_MODES:
            raise self._wrong("scope", f"must be one of {', '.join(_SCOPE_MODES)}, not {self.scope!r}")
        if not _is_positive(self.default_expires_in):
            raise self._wrong("default_expires_in", "must be a positive number of seconds")
        limit = self.token_rate_limit
        is_pair = isinstance(limit, tuple) and len(limit) == 2 and isinstance(limit[0], int)
        if limit is not None and not (is_pair and all(map(_is_positive, limit))):
            raise self._wrong("token_rate_limit", "must be (requests, seconds), such as (10, 60), or None")
        if not isinstance(method, str):
            self._check_function("token_endpoint_auth_method", method)
        if self.read_token_response is not None:
            self._check_function("read_token_response", self.read_token_response)
        declared = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        object.__setattr__(self, "identity", json.dumps(declared, default=_name_of, sort_keys=True))

    def _wrong(self, name: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"provider {self.name!r}: {name} {problem}")

    def _check_texts(self) -> None:
        for name in ("name", "env_prefix"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise self._wrong(name, "must be a non-empty str")
        for name in ("token_endpoint", "introspection_endpoint", "revocation_endpoint"):
            path = getattr(self, name)
            if path is None and name != "token_endpoint":
                continue
            # Anything but a path would become part of the host's name.
            if not isinstance(path, str) or path[:1] != "/" or not path.isprintable() or set(path) & set(" ?#"):
                raise self._wrong(name, f"must be a path that begins with '/', without a query, not {path!r}")

    def _check_origins(self) -> None:
        if not isinstance(self.environments, Mapping):
            raise self._wrong("environments", "must map names to origins")
        if self.environments and "production" not in self.environments:
            raise self._wrong("environments", "must hold 'production', or be empty")
        if not isinstance(self.api_origins, Mapping) or not set(self.api_origins) <= set(self.environments):
            raise self._wrong("api_origins", "must map names of environments to tuples of origins")
        for name, origin in self.environments.items():
            parse_origin(f"provider {self.name!r}: environments[{name!r}]", origin)
        for name, origins in self.api_origins.items():
            if not isinstance(origins, tuple | list):
                problem = f"must be a tuple of origins, not a {type(origins).__name__}"
                raise self._wrong(f"api_origins[{name!r}]", problem)
            for origin in origins:
                parse_origin(f"provider {self.name!r}: api_origins[{name!r}]", origin)

    def _check_function(self, name: str, function: Any) -> None:
        if inspect.iscoroutinefunction(function) or not callable(function):
            raise self._wrong(name, "must be a plain function")
        if inspect.isfunction(function):
            stable = function.__closure__ is None and "<" not in function.__qualname__
        else:
            unnamed = inspect.ismethod(function) or isinstance(function, functools.partial)
            stable = not unnamed and " at 0x" not in repr(function)
        if not stable:
            raise self._wrong(
                name,
                "must be a function at the top level of a module, or an object with a stable repr: it is part of the"
                " cache key, which a lambda, closure, partial or bound method cannot be",
            )


def _name_of(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}" if inspect.isfunction(function) else repr(function)


def _is_positive(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0  # type: ignore[arg-type, operator]  # a number by now
