"""The commands and their options, on typer; and what becomes of an error, of Ctrl-C and of a closed pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from .. import PROVIDERS, __version__
from ..exceptions import BaaSAuthError
from ._check import check
from ._demo import demo
from ._exit_codes import ExitCode, UsageError, error_line, exit_code
from ._gateways import NAMES, AuthClass, Settings, complete, find
from ._output import discard_output, fail, logging_to_stderr, tolerate_encodings
from ._sandbox import DEFAULT_PORT, print_variables, sandbox
from ._tokens import introspect, revoke, token

__all__ = ["run"]

_LONGEST = 1e9  # seconds
_WIDTH = max(30, min(80, shutil.get_terminal_size().columns))
_CODES = "\n".join(
    textwrap.fill(f"{code.value:3}  {code.meaning}", _WIDTH - 2, subsequent_indent=" " * 5) for code in ExitCode
)

app = typer.Typer(
    name="baas-auth",
    help="OAuth 2.0 client credentials for Brazilian BaaS and Pix gateways.",
    epilog=f"\b\nExit codes:\n{_CODES}",  # \\b: as it is, not wrapped
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, secrets among them
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": _WIDTH},
)

Provider = Annotated[
    str,
    typer.Argument(metavar="PROVIDER", help=f"{', '.join(NAMES)}, or module:Class.", autocompletion=complete),
]
Providers = Annotated[
    list[str],
    typer.Argument(metavar="PROVIDER", help=f"{', '.join(NAMES)}, or module:Class.", autocompletion=complete),
]
OfProvider = Annotated[
    str, typer.Option("--provider", metavar="NAME", help="axia, or module:Class.", autocompletion=complete)
]
EnvFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="Read KEY=value lines from FILE, and not the environment.")
]
Scope = Annotated[str | None, typer.Option(metavar="SCOPES", help="Scopes, separated by spaces.")]
Environment = Annotated[str | None, typer.Option(metavar="NAME", help="Such as homologation, for bs2.")]
BaseUrl = Annotated[str | None, typer.Option(metavar="URL", help="Origin of the gateway.")]
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="For one request. Default: 10.")]
UserAgent = Annotated[str | None, typer.Option(metavar="TEXT", help="User-Agent that the gateway has registered.")]
Cert = Annotated[str | None, typer.Option(metavar="FILE", help="Client certificate (PEM), for mutual TLS.")]
Key = Annotated[str | None, typer.Option(metavar="FILE", help="Its key, if --cert does not hold it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the package's log on standard error.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"baas-auth-plugins {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@contextmanager
def _running(*, verbose: bool, waits: bool = True, cls: AuthClass | None = None) -> Iterator[None]:
    """Show the package's log, and turn errors into one line and an exit code."""
    try:
        with logging_to_stderr(verbose=verbose, waits=waits):
            yield
    except BaaSAuthError as error:
        fail(error_line(error, cls.provider.env_prefix if cls else None))
        raise typer.Exit(exit_code(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        raise typer.Exit(ExitCode.FAILED) from error


@app.command("check", short_help="Get a token; report what it is good for.")
def _check_command(
    providers: Providers,
    env_file: EnvFile = None,
    scope: Scope = None,
    environment: Environment = None,
    base_url: BaseUrl = None,
    timeout: Timeout = None,
    user_agent: UserAgent = None,
    cert: Cert = None,
    key: Key = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Get a token with your credentials; report its lifetime and scopes, and the gateway's latency and clock."""
    settings = Settings(env_file, scope, environment, base_url, timeout, user_agent, cert, key)
    with _running(verbose=verbose):
        return check([find(name) for name in providers], settings, as_json=json)


@app.command("token", short_help="Print an access token.")
def _token_command(
    provider: Provider,
    env_file: EnvFile = None,
    scope: Scope = None,
    environment: Environment = None,
    base_url: BaseUrl = None,
    timeout: Timeout = None,
    user_agent: UserAgent = None,
    cert: Cert = None,
    key: Key = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Request a new token and print it, for curl and scripts."""
    settings = Settings(env_file, scope, environment, base_url, timeout, user_agent, cert, key)
    return _on_one(token, provider, settings, as_json=json, verbose=verbose)


@app.command("introspect", short_help="Ask whether a token is active.", context_settings={"allow_extra_args": True})
def _introspect_command(
    context: typer.Context,
    provider: OfProvider = "axia",
    env_file: EnvFile = None,
    environment: Environment = None,
    base_url: BaseUrl = None,
    timeout: Timeout = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Read a token from standard input, and ask the gateway whether it is active."""
    settings = Settings(env_file, None, environment, base_url, timeout)
    return _on_one(introspect, provider, settings, as_json=json, verbose=verbose, rest=context.args)


@app.command("revoke", short_help="Revoke a token.", context_settings={"allow_extra_args": True})
def _revoke_command(
    context: typer.Context,
    provider: OfProvider = "axia",
    env_file: EnvFile = None,
    environment: Environment = None,
    base_url: BaseUrl = None,
    timeout: Timeout = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Read a token from standard input, and revoke it. Axia ends all associated grants with it."""
    settings = Settings(env_file, None, environment, base_url, timeout)
    return _on_one(revoke, provider, settings, as_json=json, verbose=verbose, rest=context.args)


def _on_one(
    command: Callable[..., int],
    provider: str,
    settings: Settings,
    *,
    as_json: bool,
    verbose: bool,
    rest: list[str] | None = None,
) -> int:
    if rest:  # it may be a token, so it is not shown
        raise UsageError("the token is read from standard input, because process lists show arguments: ... | baas-auth")
    cls = find(provider)
    with _running(verbose=verbose, cls=cls):
        return command(cls, settings, as_json=as_json)


@app.command("sandbox", short_help="Run the gateways on this machine.")
def _sandbox_command(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="NUMBER", min=0, max=65_535, help="0 for any.")] = DEFAULT_PORT,
    hostname: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name of this machine, for containers.")
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Serve only this gateway. May be repeated.", autocompletion=complete),
    ] = None,
    expires_in: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Lifetime of tokens. Default: each gateway's own.")
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Serve https, with a CA of its own.")] = False,
    env_only: Annotated[
        bool, typer.Option("--env-only", help="Print only the variables of a sandbox that runs, for eval.")
    ] = False,
    verbose: Verbose = False,
) -> int:
    """Run the gateways on this machine until Ctrl-C, and print a line for each request.

    In another terminal, eval "$(baas-auth sandbox --env-only)" sets the variables.
    """
    classes = [find(name) for name in provider] if provider else None
    if expires_in is not None and not 0 < expires_in < _LONGEST:
        raise UsageError("--expires-in must be more than 0 seconds")
    with _running(verbose=verbose):
        if env_only:
            return print_variables(classes, host=host, port=port, tls=tls)
        return sandbox(
            classes or PROVIDERS, host=host, port=port, hostnames=hostname or (), expires_in=expires_in, tls=tls
        )


@app.command("demo", short_help="Show the package at work, with figures.")
def _demo_command(json: Json = False, verbose: Verbose = False) -> int:
    """Call every gateway through every client, on the sandbox, and show the figures. Takes some 10 s."""
    with _running(verbose=verbose, waits=False):
        return demo(as_json=json)


def run(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: the arguments.

    Returns:
        The exit code.
    """
    tolerate_encodings()
    try:
        code = app(args=list(argv), prog_name="baas-auth", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return int(code or ExitCode.OK)
    except typer.TyperException as error:
        fail(_usage(error))
        return ExitCode.USAGE
    except UsageError as error:
        fail(str(error))
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return ExitCode.CLOSED_PIPE
    except OSError as error:
        fail(f"cannot write the output: {error.strerror or error}")
        discard_output()
        return ExitCode.FAILED
    except SystemExit as exit_:  # of completion, and of typer where the pipe is closed
        if isinstance(exit_.__context__, BrokenPipeError):
            discard_output()
            return ExitCode.CLOSED_PIPE
        return exit_.code if isinstance(exit_.code, int) else ExitCode.OK


def _usage(error: typer.TyperException) -> str:
    """Return typer's message, with what it knows of near options, and where there is more help."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    possibilities = getattr(error, "possibilities", None)
    message = (error.message if possibilities else error.format_message()).replace("?.", "?")
    if possibilities:
        message = f"{message}. Did you mean {' or '.join(possibilities)}?"
    elif message.startswith("Missing argument") and parameter is not None:
        message = f"{message.rstrip('.')}: {parameter.help}"
    end = "" if message.endswith((".", "?")) else "."
    return f"{message}{end} See: {context.command_path if context else 'baas-auth'} --help"
