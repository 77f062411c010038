"""Processes side by side, one for each piece of work, so that none sees what another left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

Item = TypeVar("Item")
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ProcessDied(RuntimeError):
    """A process ended without a result."""


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def side_by_side(
    function: Callable[[Item], Any], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Any | ProcessDied]]:
    """``function`` of every item, each in a new interpreter with one thread, as they are done.

    A process that dies (killed for its memory, say) takes nobody along: its item comes with a `ProcessDied`. When the
    iterator is closed, or this process dies, the running ones end too.

    Args:
        function: a module's function. What it raises also comes as a `ProcessDied`.
        items: what it is called with.
        workers: processes at a time.
    """
    context = get_context("spawn")
    waiting = deque(items)
    running: dict[Connection, tuple[SpawnProcess, Item]] = {}
    for name in _ONE_THREAD:  # on purpose: more threads than cores make small models many times slower
        os.environ[name] = "1"
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                item = waiting.popleft()
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(function, item, there))
                process.start()
                there.close()
                running[here] = process, item
            for ready in connection.wait(list(running)):
                assert isinstance(ready, Connection)
                process, item = running[ready]
                try:
                    result = ready.recv()
                except EOFError:
                    process.join()
                    result = ProcessDied(_how(process.exitcode))
                process.join()
                del running[ready]
                yield item, result
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _work(function: Callable[[Item], Any], item: Item, there: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    there.send(function(item))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; was there enough memory? Try fewer --workers" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{hint}"
    return f"the process ended with exit code {code} and no result"
