"""``sandbox``: the gateways on this machine, the variables that point to them, and a line for each request."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shlex
import signal
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from ..sandbox import RecordedRequest, Sandbox
from ._exit_codes import ExitCode, UsageError
from ._gateways import AuthClass
from ._output import print_line, waiting

__all__ = ["DEFAULT_PORT", "assignments", "log_lines", "print_variables", "sandbox"]

DEFAULT_PORT = 8765
_START = 5.0  # seconds that --env-only waits for a sandbox that has just been started
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # where to ask one that listens there


def sandbox(
    classes: Sequence[AuthClass],
    *,
    host: str,
    port: int,
    hostnames: Sequence[str] = (),
    expires_in: float | None = None,
    tls: bool = False,
) -> int:
    """Run the gateways until Ctrl-C.

    Args:
        classes: the gateways to serve.
        host: address to listen on.
        port: port to listen on; 0 for any.
        hostnames: further names by which clients reach it.
        expires_in: lifetime of tokens in seconds; None for each gateway's own.
        tls: serve https.

    Raises:
        OSError: the address cannot be used, or standard output is closed.
        UsageError: a host name is wrong.
    """
    log = _Log()
    if not all(map(_HOSTNAME.fullmatch, hostnames)):
        raise UsageError("--hostname must be the name of a host, in ASCII, such as host.docker.internal")
    running = Sandbox(
        providers=classes,
        host=host,
        port=port,
        hostnames=hostnames,
        expires_in=expires_in,
        tls=tls,
        on_request=log.on_request,
    )
    with _stopped_by_signals(), suppress(KeyboardInterrupt), _started(running, host, port):
        _introduce(running, classes, is_remote=host not in _LOOPBACK)
        log.wait()
    return ExitCode.OK


def _started(running: Sandbox, host: str, port: int) -> Sandbox:
    """Start the sandbox, with errors that say what to do."""
    try:
        return running.start()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
        raise OSError(f"port {port} is in use; name another with --port, or 0 for any") from error


def _introduce(running: Sandbox, classes: Sequence[AuthClass], *, is_remote: bool) -> None:
    """Print where the gateways are and how to use them."""
    try:
        variables = [running.environment(cls) for cls in classes]  # gives some of them a further port
    except (OSError, OverflowError) as error:
        raise OSError("no free port after --port for the gateways that need their own; name a lower one") from error
    print_line(f"The gateways are on {running.url} until Ctrl-C.", indent="")
    print_line("The page there shows requests and tokens, and injects faults.", indent="")
    if is_remote and running.url.startswith("http:"):
        print_line("Clients in containers and on other machines need --tls, because they refuse http.", indent="")
    print()
    for assignment in assignments(variables):
        print(assignment)
    print()
    print_line("Requests:")


class _Log:
    """Prints each request, from the threads of their connections."""

    def __init__(self) -> None:
        self._failed = threading.Event()
        self._error: OSError | None = None

    def on_request(self, request: RecordedRequest) -> None:
        """Print one request; if that fails, wake up `wait`."""
        try:
            for line in log_lines(request.masked()):
                print_line(line)
        except OSError as error:
            self._error = error
            self._failed.set()

    def wait(self) -> None:
        """Wait until standard output fails.

        Raises:
            OSError: of standard output.
        """
        while not self._failed.wait(1.0):  # without a timeout, Ctrl-C would not end it on Windows
            pass
        if self._error is not None:
            raise self._error


def log_lines(request: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for one request: what came, what was answered, and how it differed from the gateway's page.

    Args:
        request: as `RecordedRequest.masked` returns it.
    """
    when = time.strftime("%H:%M:%S", time.localtime(request["at"]))
    query = f"?{request['query']}" if request["query"] else ""
    answer = "closed without an answer" if request["status"] is None else str(request["status"])
    took = "" if request["duration"] is None else f" in {request['duration'] * 1000:.0f} ms"
    provider = request["provider"] or "-"
    yield f"{when} {provider} {request['method']} {request['path']}{query} -> {answer}{took}"
    if request["problem"]:
        yield f"  differs: {request['problem']}"
    if request["fault"]:
        yield f"  fault: {request['fault']}"
    if request["kind"] != "api" or request["problem"]:
        headers = request["headers"]
        sent = [f"{name}: {headers[name]}" for name in ("authorization", "content-type") if name in headers]
        sent += [f"body: {request['body']}"] if request["body"] else []
        yield f"  sent: {'; '.join(sent) or 'no credentials'}"


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM end the sandbox as Ctrl-C does, so that the files of its certificates are deleted."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- variables


def assignments(variables: Sequence[Mapping[str, str]]) -> list[str]:
    """Return statements for this machine's shell that set variables, each once.

    Args:
        variables: name to value, for some gateways.
    """
    merged = {name: value for some in variables for name, value in some.items()}
    if os.name == "nt" and "MSYSTEM" not in os.environ:  # Git Bash sets it
        return [f"$env:{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in merged.items()]
    return [f"export {name}={shlex.quote(value)}" for name, value in merged.items()]


def print_variables(classes: Sequence[AuthClass] | None, *, host: str, port: int, tls: bool) -> int:
    """Print only the variables of a sandbox that runs, for ``eval``.

    Args:
        classes: the gateways that are wanted; None for all that it serves.
        host: address that it listens on.
        port: port that it listens on.
        tls: whether it serves https.

    Raises:
        ConnectionRefusedError: no sandbox runs there.
        UsageError: the port is not known, or the sandbox does not serve a gateway.
    """
    if not port:
        raise UsageError("--env-only needs the --port that the sandbox listens on")
    host = _WILDCARDS.get(host, host)
    url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    with waiting(f"the sandbox on {url} (at most {_START:g} s)"):
        served = _ask(host, port, tls=tls, until=time.monotonic() + _START)
    if served is None:
        raise ConnectionRefusedError(f"no sandbox on {url}; start it in another terminal with: baas-auth sandbox")
    names = list(served) if classes is None else [cls.provider.name for cls in classes]
    if missing := [name for name in names if name not in served]:
        raise UsageError(f"the sandbox on {url} does not serve {', '.join(missing)}")
    print("\n".join(assignments([served[name] for name in names])), flush=True)
    return ExitCode.OK


def _ask(host: str, port: int, *, tls: bool, until: float) -> dict[str, dict[str, str]] | None:
    """Return the variables of the sandbox there, or None if none answers in time."""
    while True:
        try:
            with closing(_connection(host, port, tls=tls)) as connection:
                connection.request("GET", "/_sandbox/environment")
                response = connection.getresponse()
                content = json.loads(response.read()) if response.status == 200 else {}
            environment: dict[str, dict[str, str]] | None = content.get("environment")
            return environment
        except ConnectionError:
            if time.monotonic() > until:
                return None
            time.sleep(0.1)
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            return None


def _connection(host: str, port: int, *, tls: bool) -> http.client.HTTPConnection:
    if not tls:
        return http.client.HTTPConnection(host, port, timeout=_START)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the answer says which CA to trust, and it is this machine's own
    return http.client.HTTPSConnection(host, port, timeout=_START, context=context)
