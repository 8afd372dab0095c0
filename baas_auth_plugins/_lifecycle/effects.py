"""What flows yield: the I/O and the waiting that they need and that a driver performs.

A flow is a generator. It yields an effect, gets the effect's result or an exception at that place, and returns what its
caller asked for. The rules:

- A flow opens no socket, sleeps in no thread and imports no HTTP library. A driver performs, and decides nothing.
- A driver raises `NetworkError` where the flow can go on, and `ConnectionLostError` where it cannot: httpx closes an
  auth flow whose request failed, so the flow must not yield again.
- An exception of a signal handler can come out of any effect. So no flow catches `Exception` around one; a function in
  a thread reports its own exceptions in an `Outcome`.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .._oauth.messages import TokenRequest, TokenResponse
from .._process import lock, process_id
from ..exceptions import TokenEndpointError

R = TypeVar("R")
T = TypeVar("T")


class Effect(Generic[R]):
    """Something that a driver does for a flow: ``result = yield from effect``."""

    __slots__ = ()

    def __iter__(self) -> Generator[Effect[Any], Any, R]:
        result: R = yield self
        return result


Flow = Generator[Effect[Any], Any, T]


class SendTokenRequest(Effect[TokenResponse]):
    """Send a token request through the caller's own httpx client."""

    __slots__ = ("request",)

    def __init__(self, request: TokenRequest) -> None:
        self.request = request


class Sleep(Effect[None]):
    """Wait for some seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class ReadResponse(Effect[None]):
    """Read the API's rejected response, so that its connection is free. Nothing of its body can fail."""

    __slots__ = ()


class Waiter:
    """A caller that can be woken from any thread, also before its driver has set `notify`."""

    __slots__ = ("deadline", "is_woken", "notify")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.notify: Callable[[], object] | None = None
        self.is_woken = False

    def wake(self) -> bool:
        """Wake the caller; return False if its event loop is closed."""
        self.is_woken = True
        try:
            if self.notify is not None:
                self.notify()
        except RuntimeError:
            return False
        return True


class Wait(Effect[None]):
    """Wait until a waiter is woken, for at most some seconds.

    Args:
        waiter: the waiter.
        seconds: the longest wait.
        thread: id of the thread that will wake it. A driver that would block that very thread raises `BlockedError`.
    """

    __slots__ = ("seconds", "thread", "waiter")

    def __init__(self, waiter: Waiter, seconds: float, thread: int = 0) -> None:
        self.waiter = waiter
        self.seconds = seconds
        self.thread = thread


class BlockedError(Exception):
    """A wait would block the thread that has to end it, as a sync call inside a coroutine does."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What became of a function in a thread: its value, its error, or neither in time."""

    value: T | None = field(default=None, repr=False)  # a client secret, or a token response
    error: BaseException | None = None
    is_timeout: bool = False


class Job(Generic[T]):
    """A function in a daemon thread. Any number of callers can wait for it; one that hangs stops no process from ending.

    Args:
        function: the function.
        in_thread: False to call it in the thread that joins first.

    Attributes:
        is_abandoned: whether a caller waited in vain.
        outcome: what became of the function, at its end.
    """

    __slots__ = ("_function", "_in_thread", "_is_started", "_process_id", "_waiters", "is_abandoned", "outcome")

    def __init__(self, function: Callable[[], T], *, in_thread: bool = True) -> None:
        self._function = function
        self._in_thread = in_thread
        self._process_id = process_id()
        self._is_started = False
        self._waiters: list[Waiter] = []
        self.is_abandoned = False
        self.outcome: Outcome[T] | None = None

    @property
    def is_running(self) -> bool:
        """Whether its outcome is still to come. A fork leaves its thread in the parent."""
        return self.outcome is None and self._process_id == process_id()

    def join(self) -> Waiter:
        """Start the function unless it runs already, and return a waiter that is woken at its end."""
        waiter, starts = Waiter(deadline=0), False
        try:
            with lock():
                self._waiters.append(waiter)
                starts, self._is_started = not self._is_started, True
            if starts:
                self._start()
        except BaseException as interrupt:  # a signal handler raised before the thread could start
            if starts:
                self._end(Outcome(error=InterruptedError(f"interrupted by {type(interrupt).__name__}")))
            raise
        if self.outcome is not None:
            waiter.wake()
        return waiter

    def outcome_in_time(self) -> Outcome[T]:
        """Return the outcome after a wait; or a timeout, and note that a caller waits no more."""
        if self.outcome is None:
            self.is_abandoned = True
            return Outcome(is_timeout=True)
        return self.outcome

    def wait(self, seconds: float) -> None:
        """Block this thread until the function has ended, at most some seconds."""
        ended, waiter = threading.Event(), self.join()
        waiter.notify = ended.set
        if not waiter.is_woken:
            ended.wait(seconds)

    def _start(self) -> None:
        context = contextvars.copy_context()
        try:
            if self._in_thread:
                threading.Thread(target=context.run, args=(self._run,), name="baas-auth", daemon=True).start()
                return
        except RuntimeError:  # the interpreter is shutting down, and starts no thread
            pass
        self._run()

    def _run(self) -> None:
        try:
            outcome = Outcome(value=self._function())
        except BaseException as error:  # also what a test tool raises to fail a test
            outcome = Outcome(error=error)
        self._end(outcome)

    def _end(self, outcome: Outcome[T]) -> None:
        with lock():
            self.outcome = self.outcome or outcome
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.wake()


class RunInThread(Effect[Outcome[T]], Generic[T]):
    """Wait for a job, at most some seconds; start it if it does not run yet."""

    __slots__ = ("job", "seconds")

    def __init__(self, job: Job[T], seconds: float) -> None:
        self.job = job
        self.seconds = seconds


class ConnectionLostError(Exception):
    """A request failed, and the HTTP client has closed this flow: nothing more may be yielded.

    Attributes:
        response: the answer of the token endpoint, if a response hook of the client raised at it.
        error: what that answer means, or why the request was not sent on.
    """

    def __init__(self, response: TokenResponse | None = None, error: TokenEndpointError | None = None) -> None:
        super().__init__()
        self.response = response
        self.error = error


class Stepper(Generic[T]):
    """Runs a flow one effect at a time: each effect's `result` or `error` goes into the next step.

    Attributes:
        value: what the flow returned, at its end.
    """

    value: T

    def __init__(self, flow: Flow[T]) -> None:
        self.flow = flow
        self.result: Any = None
        self.error: BaseException | None = None

    def next(self) -> Effect[Any] | None:
        """Return the next effect, or None at the end of the flow."""
        result, error = self.result, self.error
        self.result = self.error = None
        try:
            return self.flow.send(result) if error is None else self.flow.throw(error)
        except StopIteration as end:
            self.value = end.value
            return None
