"""Coroutines waited for by plain code, also where an event loop is running already (as in a notebook)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable
from typing import TypeVar

_T = TypeVar("_T")
_running: tuple[int, asyncio.AbstractEventLoop, threading.Thread] | None = None
_starting = threading.Lock()


def wait_for(awaitable: Awaitable[_T]) -> _T:
    """Run an awaitable in the event loop of one background thread, and return its result.

    It is the same loop every time, so that what belongs to a loop (an HTTP client's open connections) can be kept
    between calls.

    Raises:
        RuntimeError: called by code that runs in that loop itself, which would wait for ever.
        BaseException: what the awaitable raises.
    """
    loop, thread = _background_loop()
    if thread is threading.current_thread():
        if asyncio.iscoroutine(awaitable):
            awaitable.close()  # else Python warns, later and elsewhere, that it was never awaited
        raise RuntimeError("an asynchronous reward cannot score with another one in plain code: await it")

    async def finish() -> _T:
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(finish(), loop)
    try:
        return future.result()
    except BaseException:  # an interrupt, too, must not leave it running
        future.cancel()
        raise


def _background_loop() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """The loop and its thread, started by the first call in this process: a fork does not inherit threads."""
    global _running
    with _starting:
        if _running is None or _running[0] != os.getpid():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="asynchronous-rewards", daemon=True)
            thread.start()
            _running = (os.getpid(), loop, thread)
        return _running[1], _running[2]
