"""Which gateway a command means, and its credentials: from the environment or from a file."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from dotenv.parser import parse_stream

from .. import PROVIDERS, OAuth2ClientCredentialsAuth
from ..exceptions import ConfigurationError
from ._exit_codes import UsageError

__all__ = ["NAMES", "AuthClass", "Settings", "complete", "did_you_mean", "find"]

AuthClass = type[OAuth2ClientCredentialsAuth]

NAMES = {cls.provider.name: cls for cls in PROVIDERS}
_LONGEST_NAME = 24  # longer words may be tokens that went to the wrong place
_VARIABLES = ("CLIENT_ID", "CLIENT_SECRET", "SCOPE", "ENVIRONMENT", "BASE_URL")


def complete(incomplete: str) -> list[str]:
    """Return the providers for the shell's completion.

    Args:
        incomplete: what the user has typed.
    """
    return [name for name in NAMES if name.startswith(incomplete.lower())]


def did_you_mean(typed: str, known: list[str]) -> str:
    """Return a question that names the nearest known words, or nothing.

    Args:
        typed: what the user typed.
        known: the words that would have been right.
    """
    near = difflib.get_close_matches(typed, known, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def find(name: str) -> AuthClass:
    """Return the auth class that a word of the command line names.

    Args:
        name: ``axia``, ``ntxpay``, ``avista``, ``bs2``, or ``module:Class`` for a declared gateway.

    Raises:
        UsageError: there is no such provider, module or class.
    """
    if known := NAMES.get(name.lower()):
        return known
    if ":" in name:
        return _load(*name.split(":", 1))
    shown = name if len(name) <= _LONGEST_NAME else "that"
    near = did_you_mean(name.lower(), list(NAMES))
    raise UsageError(
        f"{shown}: no such provider.{near} The providers are {', '.join(NAMES)}, or module:Class of a declared gateway."
    )


def _load(module_name: str, class_name: str) -> AuthClass:
    if not class_name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError("a declared gateway is written module:Class, such as mygateways:FifthAuth")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UsageError(f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    found = getattr(module, class_name, None)
    if _is_gateway(found):
        return found
    declared = [name for name, value in vars(module).items() if _is_gateway(value)]
    near = did_you_mean(class_name, declared) or (f" It has {', '.join(declared)}." if declared else "")
    raise UsageError(f"{module_name} has no gateway {class_name}.{near} A gateway is a class with a `provider`.")


def _is_gateway(value: object) -> TypeGuard[AuthClass]:
    return isinstance(value, type) and issubclass(value, OAuth2ClientCredentialsAuth) and hasattr(value, "provider")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says about credentials and the token request; None is not said.

    Args:
        env_file: a file of ``KEY=value`` lines, read instead of the environment.
        scope: instead of the variable.
        environment: instead of the variable.
        base_url: instead of the variable.
        timeout: seconds for one token request.
        user_agent: the User-Agent of token requests.
        cert: path of a client certificate (PEM), for mutual TLS.
        key: path of its key, if that is another file.
    """

    env_file: str | None = None
    scope: str | None = None
    environment: str | None = None
    base_url: str | None = None
    timeout: float | None = None
    user_agent: str | None = None
    cert: str | None = None
    key: str | None = None

    @property
    def client_certificate(self) -> str | tuple[str, str] | None:
        """What `requests.Session.cert` takes.

        Raises:
            ConfigurationError: a file is not there, or there is a key without a certificate.
        """
        if self.key is not None and self.cert is None:
            raise ConfigurationError("--key needs --cert")
        for path in (self.cert, self.key):
            if path is not None and not Path(path).is_file():
                raise ConfigurationError(f"cannot read {path}: there is no such file")
        return (self.cert, self.key) if self.cert is not None and self.key is not None else self.cert

    def variables(self, cls: AuthClass) -> dict[str, str]:
        """Return the variables of this gateway that are set.

        Args:
            cls: the gateway.

        Raises:
            ConfigurationError: the file cannot be read, or holds a line that is not ``KEY=value``.
        """
        names = [f"{cls.provider.env_prefix}_{name}" for name in _VARIABLES]
        values = os.environ if self.env_file is None else read_env_file(self.env_file)
        return {name: values[name] for name in names if values.get(name)}

    def origin(self, cls: AuthClass) -> str | None:
        """Return the origin of the token endpoint, if the settings name one that exists.

        Args:
            cls: the gateway.
        """
        said, prefix = self.variables(cls), cls.provider.env_prefix
        environment = self.environment or said.get(f"{prefix}_ENVIRONMENT") or "production"
        base_url = self.base_url or (None if self.environment else said.get(f"{prefix}_BASE_URL"))
        return base_url or cls.provider.environments.get(environment)

    def auth(self, cls: AuthClass, **more: Any) -> OAuth2ClientCredentialsAuth:
        """Return an auth object with these settings.

        Args:
            cls: the gateway.
            more: further parameters of its constructor.

        Raises:
            ConfigurationError: a variable is missing, or a setting is wrong.
        """
        said: dict[str, Any] = {
            "scope": self.scope,
            "environment": self.environment,
            "base_url": self.base_url,
            "timeout": self.timeout,
            "headers": {"User-Agent": self.user_agent} if self.user_agent else None,
        }
        said = {name: value for name, value in said.items() if value is not None}
        if "environment" in said:
            said.setdefault("base_url", None)  # an option is stronger than a variable
        if self.env_file is None:
            return cls.from_env(**said | more)
        try:
            with _only(self.variables(cls), cls):
                return cls.from_env(**said | more)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.env_file}: {error}") from error


def read_env_file(path: str) -> dict[str, str]:
    """Return the variables in a file of ``KEY=value`` lines. Values are taken as they are: ``$NAME`` is not replaced.

    Args:
        path: the file, in UTF-8.

    Raises:
        ConfigurationError: the file cannot be read, or a line is not ``KEY=value``.
    """
    values: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8-sig") as file:
            for binding in parse_stream(file):
                if binding.error or "\0" in (binding.value or ""):
                    raise ConfigurationError(f"{path}, line {binding.original.line}: this is not KEY=value")
                if binding.key is not None and binding.value is not None:
                    values[binding.key] = binding.value
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"cannot read {path}: it is not a text file in UTF-8") from None
    return values


@contextmanager
def _only(values: Mapping[str, str], cls: AuthClass) -> Iterator[None]:
    """Make the environment hold only these of the gateway's variables, because `from_env` reads nothing else."""
    names = [f"{cls.provider.env_prefix}_{name}" for name in _VARIABLES]
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
