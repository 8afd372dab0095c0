"""Performing what flows ask for, in threads and in event loops: all but HTTP, which the caller brings.

asyncio and trio are told apart only where a waiter may be woken from another thread; for the
rest anyio, which httpx brings along, speaks both.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ._flow import Call, Effect, Join, Sleep, Steps, TokenRequest, TokenResponse, Waiter

if TYPE_CHECKING:
    import asyncio

__all__ = ["aperform", "arun", "in_thread", "in_trio", "perform", "run"]

T = TypeVar("T")


def perform(effect: Effect) -> Any:
    """Do what a flow asked for, in this thread."""
    match effect:
        case Sleep(seconds):
            time.sleep(seconds)
        case Call(function):
            return function()  # which nothing can interrupt
        case Join(waiter, timeout, leader):
            if leader == threading.get_ident():
                return True
            event = threading.Event()
            waiter.notify = event.set
            if not waiter.woken:
                event.wait(timeout)
        case _:
            raise TypeError(f"no way to perform {type(effect).__name__} here")
    return None


def run(
    flow: Generator[Effect, Any, T],
    send: Callable[[TokenRequest], TokenResponse],
    perform: Callable[[Effect], Any] = perform,
) -> T:
    """Run a flow to its end in this thread, with `send` for its token requests."""
    steps = Steps(flow)
    while (effect := steps.next()) is not None:
        try:
            steps.result = send(effect) if isinstance(effect, TokenRequest) else perform(effect)
        except BaseException as raised:  # whatever it is, the flow must know, to hand over its lead
            steps.error = raised
    return steps.value


def aperform(effect: Effect) -> Awaitable[Any]:
    """Do what a flow asked for, blocking no event loop."""
    match effect:
        case Join(waiter, timeout):
            return _join_in_trio(waiter, timeout) if in_trio() else _join_in_asyncio(waiter, timeout)
        case Sleep(seconds):
            import anyio  # only here and below: who never awaits never pays for it

            return anyio.sleep(seconds)
        case Call(function, timeout):
            return _call(function, timeout)
        case _:
            raise TypeError(f"no way to perform {type(effect).__name__} here")


async def _call(function: Callable[[], T], timeout: float) -> T:
    import anyio

    with anyio.fail_after(timeout):
        return await in_thread(function)


async def in_thread(function: Callable[[], T]) -> T:
    """Call a function in a worker thread.

    Not in one of anyio's own forty: those may all be waiting for what comes of this call.
    """
    import anyio
    from anyio.to_thread import run_sync

    return await run_sync(function, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))


async def arun(flow: Generator[Effect, Any, T], send: Callable[[TokenRequest], Awaitable[TokenResponse]]) -> T:
    """Run a flow to its end in this task, with `send` for its token requests."""
    steps = Steps(flow)
    while (effect := steps.next()) is not None:
        try:
            steps.result = await (send(effect) if isinstance(effect, TokenRequest) else aperform(effect))
        except BaseException as raised:
            steps.error = raised
    return steps.value


def in_trio() -> bool:
    """Tell whether this code runs under trio."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())


async def _join_in_trio(waiter: Waiter, timeout: float) -> None:
    trio = sys.modules["trio"]
    event, post = trio.Event(), trio.lowlevel.current_trio_token().run_sync_soon
    waiter.notify = lambda: post(event.set)
    with trio.move_on_after(timeout):
        if not waiter.woken:
            await event.wait()


async def _join_in_asyncio(waiter: Waiter, timeout: float) -> None:
    import asyncio

    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    woken = loop.create_future()
    waiter.notify = partial(_notify, woken, thread)
    if waiter.woken:
        return
    timer = loop.call_later(timeout, _resolve, woken)
    try:
        await woken
    finally:
        timer.cancel()


def _notify(woken: asyncio.Future[None], thread: int) -> None:
    if threading.get_ident() == thread:
        _resolve(woken)
    else:
        woken.get_loop().call_soon_threadsafe(_resolve, woken)


def _resolve(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
