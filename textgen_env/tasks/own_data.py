"""A built-in task on the user's own data: ``data=`` in place of what the task would generate.

    gym.make("textgen_env/QuestionAnswering-v0", task_kwargs={"data": "my.jsonl"})

The function of a built-in task generates its prompts. `or_own_data` adds ``data=`` to it, and with that the arguments
of a reader: `read_data` with the column names that are usual for this kind of task.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from textgen_env.lookup import did_you_mean
from textgen_env.tasks.dataset import FRACTIONS, Fractions, TextTask, load_named
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.records import Change

_TASK_OF = {".jsonl": TextTask.from_jsonl, ".csv": TextTask.from_csv}

BEST_AT_A_REFERENCE = frozenset(("bleu", "chrf", "exact_match", "rouge_1", "rouge_l", "rouge_lsum", "ter", "token_f1"))
"""Rewards under which no text earns more than a reference that has a word."""
_ROUGE_WORD = re.compile("[a-z0-9]", re.IGNORECASE)


def read_data(
    data: Any,
    *,
    reward: Any,
    prompt_field: str,
    reference_field: str | None,
    template: str = "{prompt}",
    name: str | None = None,
    fractions: Fractions = FRACTIONS,
    load_kwargs: Mapping[str, Any] | None = None,
    change: Change | None = None,
) -> TextTask:
    """A task from a user's own data.

    Its oracle is the first reference, if every prompt has one and nothing earns more under the reward
    (`BEST_AT_A_REFERENCE`); else there is none. It brings neither words nor a length cap of its own: the environment
    trains a tokenizer or takes one, and ``max_new_tokens`` is its argument.

    Args:
        data: the path of a .jsonl or .csv file, or {split: path}; the name or folder of a dataset; or a dataset itself
            (any iterable of mappings, or {split: iterable}).
        reward: what `resolve_reward` accepts.
        prompt_field: the column of the prompt; one inside another is reached by a dot, as in ``"translation.en"``.
        reference_field: the column of the reference or references; ``None`` where there are none.
        template: what each prompt is written into; it may name other columns.
        name: the task's name, by default that of the file or dataset.
        fractions: shares of train, validation and test, where the splits are not given.
        load_kwargs: given on to ``datasets.load_dataset``.
        change: applied to every record before it is read.

    Raises:
        ValueError: a record is malformed (the message says where), or a file is neither .jsonl nor .csv.
        TypeError: ``load_kwargs`` were given with anything but a name or folder.
        OSError: a file cannot be read.
        ImportError: a dataset is named, and ``datasets`` is not installed.
    """
    columns: dict[str, Any] = {
        "prompt_field": prompt_field,
        "reference_field": reference_field,
        "template": template,
        "fractions": fractions,
        "change": change,
    }
    suffix = _suffix(data)
    if suffix is not None:
        if load_kwargs:
            raise TypeError("load_kwargs are for a dataset given by name or folder, not for files")
        return under(_TASK_OF[suffix](data, name=name, **columns), reward)
    name = name or (str(data) if isinstance(data, (str, PathLike)) else "dataset")
    rows = load_named(data, load_kwargs)
    if isinstance(rows, Mapping):
        rows = {split: _with_named_classes(part) for split, part in rows.items()}
    else:
        rows = _with_named_classes(rows)
    return under(TextTask.from_dataset(rows, name=name, **columns), reward)


def under(task: TextTask, reward: Any) -> TextTask:
    """The task with a reward, and with an oracle where a reference is known to earn the most."""
    best = isinstance(reward, str) and reward in BEST_AT_A_REFERENCE
    rouge = best and reward.startswith("rouge")
    for prompt in (prompt for prompts in task.splits.values() for prompt in prompts) if best else ():
        first = prompt.references[0] if prompt.references else ""
        if not (_ROUGE_WORD.search(first) if rouge else first.strip()):
            best = False
            break
    return dataclasses.replace(task, reward=reward, oracle=reference_oracle if best else None)


def or_own_data(read: Callable[..., TextTask]) -> Callable[[Callable[..., TextTask]], Callable[..., TextTask]]:
    """Decorate a function that generates a task: with ``data=`` it calls ``read(data, ...)`` instead.

    Arguments of the other way are refused: they would have no effect. What both have is given to either.

    Raises:
        TypeError: (from the decorated function) an argument does not belong to the way that was taken.
    """
    own = {name: each for name, each in inspect.signature(read).parameters.items() if each.kind is each.KEYWORD_ONLY}

    def decorate(generate: Callable[..., TextTask]) -> Callable[..., TextTask]:
        signature = inspect.signature(generate)
        generated = signature.parameters

        @functools.wraps(generate)
        def task(*args: Any, data: Any = None, **options: Any) -> TextTask:
            given = [*list(generated)[: len(args)], *options]
            known, other = (generated, own) if data is None else (own, generated)
            for option in given:
                if option in known:
                    continue
                if option not in other:
                    raise TypeError(
                        f"{generate.__name__} has no argument '{option}'; {did_you_mean(option, {**known, 'data': 0})}"
                    )
                if data is None:
                    raise TypeError(f"{option}= says how your own data is read: give data= with it")
                raise TypeError(
                    f"{option}= shapes the generated prompts and has no effect on your own data: leave it out"
                )
            return generate(*args, **options) if data is None else read(data, **options)

        keyword_only = {"data": inspect.Parameter("data", inspect.Parameter.KEYWORD_ONLY, default=None), **own}
        added = [each for name, each in keyword_only.items() if name not in generated]
        task.__signature__ = signature.replace(parameters=[*generated.values(), *added])  # type: ignore[attr-defined]
        return task

    return decorate


def _with_named_classes(rows: Any) -> Any:
    """Rows in which the classes that a dataset numbers have the names that it gives them."""
    features = getattr(rows, "features", None) or {}
    names = {column: feature.names for column, feature in features.items() if hasattr(feature, "names")}
    if not names:
        return rows

    def named(row: Mapping[str, Any]) -> Mapping[str, Any]:
        numbers = {column: row[column] for column in names if row[column] is not None}
        return {**row, **{column: names[column][number] for column, number in numbers.items()}}

    return map(named, rows)


def _suffix(data: Any) -> str | None:
    """ ".jsonl" or ".csv" where the data is such a file, or such files by split; ``None`` for datasets."""
    files = list(data.values()) if isinstance(data, Mapping) else [data]
    if not files or not all(isinstance(file, (str, PathLike)) for file in files):
        return None
    suffixes = {Path(file).suffix for file in files}
    if len(suffixes) == 1 and suffixes <= set(_TASK_OF):
        return suffixes.pop()
    wrong = next((file for file in files if Path(file).is_file()), files[0])
    if isinstance(data, Mapping) or Path(wrong).is_file():
        raise ValueError(f"'{wrong}': files of your own end in {' or '.join(_TASK_OF)}, all in the same")
    return None
