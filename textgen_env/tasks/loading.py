"""From what a user writes for a task (an object, a name, a file, a function) to a ``TextTask``."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from textgen_env.lookup import load_entry_point
from textgen_env.tasks.dataset import TextTask

_READERS = {".jsonl": TextTask.from_jsonl, ".csv": TextTask.from_csv}


def resolve_task(task: TextTask | str | Callable[..., TextTask], /, **task_kwargs: Any) -> TextTask:
    """The task that is meant.

    Args:
        task: a ``TextTask``; the path of a ``.jsonl`` or ``.csv`` file; ``"package.module:attribute"``, the
            attribute being a ``TextTask`` or a function that returns one; or such a function.
        task_kwargs: given to the function, or to ``TextTask.from_jsonl`` / ``from_csv``.

    A task named by a string is built once and shared (tasks are immutable), so that many environments do
    not each generate it; a file (or folder) that ``task`` or the
    argument ``data`` names is read again when it has changed on disk.

    Raises:
        ValueError: the string is neither a known kind of file nor "package.module:attribute".
        TypeError: the value is no task, or ``task_kwargs`` were given to a finished one.
        ImportError, AttributeError: the string names nothing that can be imported.
    """
    if not isinstance(task, str):
        return _finished(task, repr(task), task_kwargs)
    path = Path(task)
    if path.suffix not in _READERS and ":" not in task:
        raise ValueError(
            f"'{task}' is no task: give a path that ends in {' or '.join(_READERS)}, "
            "or 'package.module:attribute', e.g. 'textgen_env.tasks:news_summary'"
        )
    # What the answer depends on besides the words: the files that are named, and their last change.
    stamp = _stamp(path) if path.suffix in _READERS else ()
    data = task_kwargs.get("data")
    if isinstance(data, (str, Path)) and Path(data).exists():
        stamp += _stamp(Path(data))
    arguments = dict(sorted(task_kwargs.items()))
    try:
        hash(tuple(arguments.values()))
    except TypeError:  # a list among the arguments: nothing to look up by, so build it afresh
        return _build(task, stamp, **arguments)
    return _build_once(task, stamp, **arguments)


def _build(spec: str, stamp: tuple[Any, ...], /, **task_kwargs: Any) -> TextTask:
    if Path(spec).suffix in _READERS:
        return _READERS[Path(spec).suffix](spec, **task_kwargs)
    return _finished(load_entry_point(spec), f"'{spec}'", task_kwargs)


def _stamp(path: Path) -> tuple[Any, ...]:
    """Identity and last change of a file, or of every file in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    states = [(file.resolve(), file.stat()) for file in files]
    return tuple((file, state.st_mtime_ns, state.st_size) for file, state in states)


_build_once = lru_cache(maxsize=32, typed=True)(_build)


def _finished(value: Any, label: str, task_kwargs: dict[str, Any]) -> TextTask:
    """A task as it is, or what the function returns; anything else is an error."""
    if isinstance(value, TextTask):
        if task_kwargs:
            raise TypeError(f"{label} is a finished task and takes no arguments, got {sorted(task_kwargs)}")
        return value
    if not callable(value):
        raise TypeError(f"{label} is a {type(value).__name__}; expected a TextTask or a function returning one")
    task = value(**task_kwargs)
    if not isinstance(task, TextTask):
        raise TypeError(f"{label} returned a {type(task).__name__}; expected a TextTask")
    return task
