"""Names and docstrings: `__all__` of each module is true, and public docstrings say what goes in, comes out and is raised."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

import pytest

import baas_auth_plugins

NOT_IMPORTED = ("__main__", "httpie_plugin")  # the one runs, the other needs HTTPie
MODULES = [
    module.name
    for module in pkgutil.walk_packages(baas_auth_plugins.__path__, "baas_auth_plugins.")
    if not module.name.endswith(NOT_IMPORTED)
]
PUBLIC = [
    name
    for name in MODULES
    if not any(part.startswith("_") for part in name.split(".")) and not name.startswith("baas_auth_plugins.cli")
]
ROOMS = [name for name in MODULES if re.search(r"\._(oauth|lifecycle|fleet|http)\.", name)]
HTTP_LIBRARIES = {"requests", "httpx", "httpx2", "urllib3", "anyio"}


def imported(name: str) -> ModuleType:
    if "telemetry" in name:
        pytest.importorskip("opentelemetry")
    return importlib.import_module(name)


def own(module: ModuleType) -> dict[str, Any]:
    """Return the functions and classes that a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__
    }


@pytest.mark.parametrize("name", MODULES)
def test_all_is_true(name: str) -> None:
    """`__all__` is there, without doubles, and names what exists."""
    module = imported(name)
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    assert [missing for missing in names if not hasattr(module, missing)] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_complete(name: str) -> None:
    """What a module defines without an underscore is in `__all__`, so that a reader sees what others use."""
    module = imported(name)
    if not hasattr(module, "__all__"):
        assert not [one for one in own(module) if not one.startswith("_")]
        return
    hidden = {one for one in own(module) if not one.startswith("_")} - set(module.__all__)
    assert hidden == set(), "either public, or with an underscore"


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_is_for(name: str) -> None:
    """The first line of a module's docstring is a sentence, or ends in a colon before its list."""
    docstring = inspect.getdoc(imported(name))
    assert docstring
    assert docstring.split("\n")[0].rstrip().endswith((".", ":")) or "\n\n" in docstring


def documented() -> list[Any]:
    """Return each public function and method, and each class with parameters of its own."""
    found = {}
    for name in ["baas_auth_plugins", *PUBLIC]:
        if importlib.util.find_spec("opentelemetry") is None and "telemetry" in name:
            continue
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if not getattr(value, "__module__", "").startswith("baas_auth_plugins"):
                continue
            if inspect.isfunction(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
            elif inspect.isclass(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
                for method in vars(value).values():
                    function = getattr(method, "__func__", method)
                    if inspect.isfunction(function) and not function.__name__.startswith("_"):
                        found[f"{function.__module__}.{function.__qualname__}"] = function
    return [pytest.param(value, id=name.removeprefix("baas_auth_plugins.")) for name, value in sorted(found.items())]


DOCUMENTED = documented()
REFERS = re.compile(r"\b(as|As for|see) `\w+`|likewise")


@pytest.mark.parametrize("value", DOCUMENTED)
def test_public_docstring(value: Any) -> None:
    """A public docstring begins with a sentence, and names each parameter unless it refers to another docstring."""
    docstring = inspect.getdoc(value)
    assert docstring, "no docstring"
    first = docstring.split("\n\n")[0]
    assert first.rstrip().endswith((".", ":")), first
    if inspect.isfunction(value) and not REFERS.search(docstring):
        missing = [
            name
            for name in inspect.signature(value).parameters
            if name not in ("self", "cls", "request", "r", "client", "method", "uri", "headers", "body", "overrides")
            and f"{name}:" not in docstring
            and f"`{name}`" not in docstring
        ]
        assert "Args:" in docstring or not missing, f"no Args for {missing}"
        if "Args:" in docstring:
            assert missing == []


@pytest.mark.parametrize(
    "method",
    ["__init__", "get_token", "invalidate", "call_with_token", "from_env"],
)
def test_errors_are_documented(method: str) -> None:
    """The methods that users call say what they raise."""
    docstring = inspect.getdoc(getattr(baas_auth_plugins.OAuth2ClientCredentialsAuth, method))
    assert docstring is not None
    assert "Raises:" in docstring


def test_error_tree_is_the_documented_one() -> None:
    """The docstring of `exceptions` draws the tree as it is."""
    from baas_auth_plugins import exceptions

    tree = exceptions.__doc__ or ""
    for name in exceptions.__all__:
        assert name in tree
    drawn = re.findall(r"([│├└─ ]*)(\w+Error)\b", tree.split("A `TokenEndpointError`")[0])
    depth = {name: len(indent.rstrip()) for indent, name in drawn if name in exceptions.__all__}
    for name, indent in depth.items():
        bases = [base.__name__ for base in getattr(exceptions, name).__mro__ if base.__name__ in exceptions.__all__]
        assert len(bases) - 1 == {0: 0, 7: 1, 11: 2}.get(indent, len(bases) - 1)


@pytest.mark.parametrize("room", ["_oauth", "_lifecycle", "_fleet"])
def test_rooms_import_no_http_library(room: str) -> None:
    """What says and decides knows no HTTP library, even indirectly but for the bases of the exceptions."""
    for name in (one for one in ROOMS if f".{room}." in one):
        module = importlib.import_module(name)
        used = {value.__name__.partition(".")[0] for value in vars(module).values() if inspect.ismodule(value)}
        assert not used & HTTP_LIBRARIES, name
