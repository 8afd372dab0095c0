"""Drivers: they perform what flows yield, in threads, asyncio and trio. Each face adds HTTP.

asyncio and trio differ only where another thread wakes a waiter. For the rest anyio, which httpx brings,
speaks both.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .._lifecycle.effects import (
    BlockedError,
    Effect,
    Flow,
    Outcome,
    ReadResponse,
    RunInThread,
    SendTokenRequest,
    Sleep,
    Stepper,
    Wait,
    Waiter,
)
from .._oauth.messages import TokenRequest, TokenResponse

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def run(flow: Flow[T], perform_effect: Callable[[Effect[Any]], Any] | None = None) -> T:
    """Run a flow to its end in this thread.

    Args:
        flow: the flow.
        perform_effect: does what it yields; by default `perform`, for flows that send nothing through an httpx client.
    """
    do, stepper = perform_effect or perform, Stepper(flow)
    while (effect := stepper.next()) is not None:
        try:
            stepper.result = do(effect)
        except BaseException as raised:  # the flow must hear of it, to hand its lead over
            stepper.error = raised
    return stepper.value


async def arun(flow: Flow[T], send: Callable[[TokenRequest], Awaitable[TokenResponse]] | None = None) -> T:
    """Run a flow to its end in this task.

    Args:
        flow: the flow.
        send: sends token requests, where the flow does not send them in a thread.
    """
    stepper = Stepper(flow)
    while (effect := stepper.next()) is not None:
        try:
            if isinstance(effect, SendTokenRequest) and send is not None:
                stepper.result = await send(effect.request)
            else:
                stepper.result = await aperform(effect)
        except BaseException as raised:
            stepper.error = raised
    return stepper.value


def perform(effect: Effect[Any]) -> Any:
    """Do what a flow yields, in this thread."""
    if isinstance(effect, Wait):
        return _wait(effect.waiter, effect.seconds, effect.thread)
    if isinstance(effect, RunInThread):
        _wait(effect.job.join(), effect.seconds)
        return effect.job.outcome_in_time()
    if isinstance(effect, Sleep):
        return time.sleep(effect.seconds)
    if isinstance(effect, ReadResponse):
        return None  # there is none
    raise TypeError(f"no way to perform {type(effect).__name__} here")


def _wait(waiter: Waiter, seconds: float, thread: int = 0) -> None:
    if thread == threading.get_ident():
        raise BlockedError
    event = threading.Event()
    waiter.notify = event.set
    if not waiter.is_woken:
        event.wait(seconds)


def aperform(effect: Effect[Any]) -> Awaitable[Any]:
    """Do what a flow yields, and block no event loop."""
    if isinstance(effect, Wait):
        return _await(effect.waiter, effect.seconds)
    if isinstance(effect, RunInThread):
        return _await_job(effect)
    import anyio  # imported lazily: sync users do not need it

    if isinstance(effect, Sleep):
        return anyio.sleep(effect.seconds)
    if isinstance(effect, ReadResponse):
        return anyio.sleep(0)
    raise TypeError(f"no way to perform {type(effect).__name__} here")


def _await(waiter: Waiter, seconds: float) -> Awaitable[None]:
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return _await_in_trio(trio, waiter, seconds)
    return _await_in_asyncio(waiter, seconds)


async def _await_job(effect: RunInThread[Any]) -> Outcome[Any]:
    await _await(effect.job.join(), effect.seconds)
    return effect.job.outcome_in_time()


async def _await_in_trio(trio: Any, waiter: Waiter, seconds: float) -> None:
    event, post = trio.Event(), trio.lowlevel.current_trio_token().run_sync_soon
    waiter.notify = lambda: post(event.set)
    with trio.move_on_after(seconds):
        if not waiter.is_woken:
            await event.wait()


async def _await_in_asyncio(waiter: Waiter, seconds: float) -> None:
    import asyncio

    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    woken = loop.create_future()
    waiter.notify = partial(_notify, woken, thread)
    if waiter.is_woken:
        return
    timer = loop.call_later(seconds, _resolve, woken)
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
