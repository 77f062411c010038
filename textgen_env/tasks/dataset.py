"""A task: prompts with their references, in train, validation and test splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from textgen_env.lookup import did_you_mean
from textgen_env.tasks.records import Change, Columns, Record, read_csv, read_jsonl
from textgen_env.types import AllowedTokens, Prompt

Pair: TypeAlias = Prompt | str | tuple[str, str | Sequence[str] | None]
"""A prompt alone, or with its reference, its references, or ``None`` for none."""

FilePath: TypeAlias = str | PathLike[str]
Fractions: TypeAlias = tuple[float, float, float]

SPLITS = ("train", "validation", "test")
FRACTIONS: Fractions = (0.8, 0.1, 0.1)
_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True, repr=False)
class TextTask:
    """Prompts in splits, immutable. Usually made by one of the ``from_...`` constructors.

    Where the splits are not given, each prompt goes to one by a hash of its text (``split_of``): the same
    prompt lands in the same split whatever the order, and records added later move none of the others.
    A prompt that occurs twice in a split is one ``Prompt`` with the references of both and the metadata of
    the first. Given splits are taken as they are, overlaps between them included.

    A task may carry its whole game: its words, its length cap, its reward, what is allowed, and the optimum.
    An environment takes from it what it is not told otherwise; ``dataclasses.replace(task, reward=...)`` adds
    a part to a finished task. For copies between processes they must pickle: functions of a module, not lambdas.

    >>> task = TextTask.from_pairs([("2 + 2 =", "4"), ("2 + 2 =", "four")], fractions=(1, 0, 0))
    >>> task.prompts()[0].references
    ('4', 'four')

    Raises:
        ValueError: a split's name is unknown, the train split is empty, or ``max_new_tokens`` is below 1.
        TypeError: ``vocabulary`` is one string.
    """

    name: str
    splits: Mapping[str, tuple[Prompt, ...]]
    """Split name ("train", "validation" or "test") -> its prompts, distinct by text."""
    vocabulary: tuple[str, ...] | None = None
    """The task's own words: each becomes one token where no tokenizer is given (see `word_tokenizer`)."""
    max_new_tokens: int | None = None
    """The length cap of a completion."""
    reward: Any = None
    """What `resolve_reward` accepts."""
    oracle: Callable[[Prompt], str] | None = None
    """A completion that reaches the optimum for a prompt, under ``reward`` and ``max_new_tokens``."""
    allowed_tokens: AllowedTokens | str | None = None
    """Which tokens may come next, or the ``"module:attr"`` of such a function (see `TextMDP`)."""

    def __post_init__(self) -> None:
        for split in self.splits:
            if split not in SPLITS:
                raise ValueError(f"task '{self.name}': unknown split '{split}'; {did_you_mean(split, SPLITS)}")
        if not self.splits.get("train"):
            raise ValueError(
                f"task '{self.name}': the train split is empty; give it records, or raise the first of fractions"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"task '{self.name}': max_new_tokens must be at least 1, got {self.max_new_tokens}")
        # A copy, so that the caller's mapping cannot change the task. (A mapping proxy would not pickle.)
        object.__setattr__(self, "splits", {split: tuple(items) for split, items in self.splits.items()})
        if self.vocabulary is not None:
            if isinstance(self.vocabulary, str):
                raise TypeError(f"task '{self.name}': vocabulary is one string; give its words, as text.split() does")
            object.__setattr__(self, "vocabulary", tuple(self.vocabulary))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split}={len(self.splits[split])}" for split in SPLITS if split in self.splits)
        return f"TextTask('{self.name}', {sizes})"

    def prompts(self, split: str = "train") -> tuple[Prompt, ...]:
        """The prompts of a split, in the order of their first appearance.

        Raises:
            ValueError: the split is unknown or empty.
        """
        if not self.splits.get(split):
            filled = [name for name, items in self.splits.items() if items]
            raise ValueError(f"task '{self.name}' has no prompts in split '{split}'; {did_you_mean(split, filled)}")
        return self.splits[split]

    def texts(self, split: str = "train") -> Iterator[str]:
        """Every prompt text, each followed by its references: what a tokenizer is trained on.

        Raises:
            ValueError: the split is unknown or empty.
        """
        for prompt in self.prompts(split):
            yield prompt.text
            yield from prompt.references

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[Pair] | Mapping[str, Iterable[Pair]],
        *,
        template: str = "{prompt}",
        name: str = "pairs",
        fractions: Fractions = FRACTIONS,
    ) -> TextTask:
        """A task from ``(prompt, reference)`` pairs, plain prompts or ``Prompt`` objects.

        Args:
            pairs: an iterable, or {split: iterable} where the splits are given.
            template: what each prompt is written into; see ``Columns.template``.
            name: the task's name, for messages.
            fractions: shares of train, validation and test; they sum to 1.

        Raises:
            ValueError: an item is malformed (the message counts it from 1), or the train split is empty.
            TypeError: ``pairs`` is one string.
        """
        columns = Columns(template=template)

        def read(items: Iterable[Pair], split: str | None) -> Iterator[Prompt]:
            if isinstance(items, str):
                raise TypeError("pairs is one string; give a list of prompts or of (prompt, reference) pairs")
            for number, item in enumerate(items, start=1):
                where = f"pair {number}" + (f" of '{split}'" if split else "")
                if isinstance(item, Prompt):
                    yield columns.build(item.text, item.references, item.metadata, where)
                elif isinstance(item, str):
                    yield columns.build(item, None, {}, where)
                elif isinstance(item, (tuple, list)) and len(item) == 2:
                    yield columns.build(item[0], item[1], {}, where)
                else:
                    raise ValueError(f"{where}: expected a prompt or (prompt, reference), got {item!r}")

        return cls._assemble(pairs, read, name, fractions)

    @classmethod
    def from_jsonl(
        cls,
        path: FilePath | Mapping[str, FilePath],
        *,
        prompt_field: str = "prompt",
        reference_field: str | None = "reference",
        template: str = "{prompt}",
        name: str | None = None,
        fractions: Fractions = FRACTIONS,
        change: Change | None = None,
    ) -> TextTask:
        """A task from JSON lines, one object a line; fields not named become metadata.

        Args:
            path: a file, or {split: file} where the splits are given.
            prompt_field: the prompt, a string or a list of strings (joined with a space).
            reference_field: a string or a list of strings; ``None`` where there are no references.
            template: what each prompt is written into; it may name metadata columns, as in
                ``"{passage} Question: {prompt} Answer:"``.
            name: the task's name, by default that of the (first) file.
            fractions: shares of train, validation and test; they sum to 1.
            change: applied to every record before it is read: from its fields to those that are wanted.

        Raises:
            ValueError: a record is malformed; the message names file, line and field.
            OSError: a file cannot be read.
        """
        columns = Columns(prompt_field, reference_field, template, change)
        return cls._from_files(path, read_jsonl, columns, name, fractions)

    @classmethod
    def from_csv(
        cls,
        path: FilePath | Mapping[str, FilePath],
        *,
        prompt_field: str = "prompt",
        reference_field: str | None = "reference",
        template: str = "{prompt}",
        name: str | None = None,
        fractions: Fractions = FRACTIONS,
        change: Change | None = None,
    ) -> TextTask:
        """A task from a CSV file with a header. Arguments and errors as for ``from_jsonl``."""
        columns = Columns(prompt_field, reference_field, template, change)
        return cls._from_files(path, read_csv, columns, name, fractions)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        prompt_field: str = "prompt",
        reference_field: str | None = "reference",
        template: str = "{prompt}",
        name: str | None = None,
        fractions: Fractions = FRACTIONS,
        change: Change | None = None,
        load_kwargs: Mapping[str, Any] | None = None,
    ) -> TextTask:
        """A task from a Hugging Face ``Dataset`` or ``DatasetDict``. Other arguments as for ``from_jsonl``.

        A ``DatasetDict`` gives the splits ("valid", "val" and "dev" are read as "validation"), unless it
        holds "train" alone, which is what ``load_dataset`` calls data that nobody split: that is divided.

        Args:
            dataset: the object (any iterable of mappings will do), or a name or folder to load.
            load_kwargs: given on to ``datasets.load_dataset``, e.g. ``{"name": "3.0.0", "split": "train"}``.

        Raises:
            ImportError: a name was given and ``datasets`` is not installed.
            TypeError: ``load_kwargs`` were given with an object.
            ValueError: a record is malformed, or a split's name is unknown.
        """
        if isinstance(dataset, (str, PathLike)):
            name = name or str(dataset)
        dataset = load_named(dataset, load_kwargs)
        if isinstance(dataset, Mapping) and list(dataset) == ["train"]:
            dataset = dataset["train"]
        columns = Columns(prompt_field, reference_field, template, change)
        title = name or "dataset"

        def read(rows: Iterable[Mapping[str, Any]], split: str | None) -> Iterator[Prompt]:
            for number, row in enumerate(rows):
                where = title + (f" ('{split}')" if split else "") + f", row {number}"
                if not isinstance(row, Mapping):
                    raise ValueError(f"{where}: expected a mapping of fields, got {type(row).__name__}")
                yield columns.prompt_of(row, where)

        return cls._assemble(dataset, read, title, fractions)

    @classmethod
    def _from_files(
        cls,
        path: FilePath | Mapping[str, FilePath],
        read_records: Callable[[FilePath], Iterator[Record]],
        columns: Columns,
        name: str | None,
        fractions: Fractions,
    ) -> TextTask:
        def read(file: FilePath, split: str | None) -> Iterator[Prompt]:
            for where, record in read_records(file):
                yield columns.prompt_of(record, where)

        if name is None:
            first = next(iter(path.values()), "") if isinstance(path, Mapping) else path
            name = Path(first).stem
        return cls._assemble(path, read, name, fractions)

    @classmethod
    def _assemble(
        cls, source: Any, read: Callable[[Any, str | None], Iterable[Prompt]], name: str, fractions: Fractions
    ) -> TextTask:
        """Read the given splits of a mapping, or divide the one source by hash."""
        splits: dict[str, tuple[Prompt, ...]] = {}
        if isinstance(source, Mapping):
            for given, part in source.items():
                split = _ALIASES.get(given, given)
                if split not in SPLITS:  # before anything is read: a long file is no place to learn it
                    raise ValueError(
                        f"unknown split '{given}'; {did_you_mean(str(given), [*SPLITS, *_ALIASES])}. "
                        "Pass {'train': ..., 'validation': ..., 'test': ...}"
                    )
                if split in splits:
                    raise ValueError(f"the split '{split}' is given twice, the second time as '{given}'")
                splits[split] = _merge(read(part, given))
        else:
            _check_fractions(fractions)
            divided: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
            for prompt in _merge(read(source, None)):
                divided[split_of(prompt.text, fractions)].append(prompt)
            splits = {split: tuple(prompts) for split, prompts in divided.items()}
        return cls(name, splits)


def load_named(dataset: Any, load_kwargs: Mapping[str, Any] | None = None) -> Any:
    """The dataset of a name or folder, loaded by ``datasets``; an object as it is.

    Raises:
        ImportError: a name was given and ``datasets`` is not installed.
        TypeError: ``load_kwargs`` were given with an object.
    """
    if not isinstance(dataset, (str, PathLike)):
        if load_kwargs:
            raise TypeError("load_kwargs are for a dataset given by name; this one is already loaded")
        return dataset
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"loading '{dataset}' needs the datasets package: pip install textgen-env[datasets]"
        ) from error
    return datasets.load_dataset(str(dataset), **(load_kwargs or {}))


def split_of(text: str, fractions: Fractions = FRACTIONS) -> str:
    """The split that a prompt text belongs to: a pure function of the text and the fractions.

    The first 48 bits of the text's BLAKE2b hash, read as a number in [0, 1), fall into the interval of one
    split. Growing the train share therefore only ever moves prompts towards train.

    Args:
        text: the prompt as the agent sees it, after the template.
        fractions: shares of train, validation and test; they sum to 1.

    Raises:
        ValueError: the fractions are not three non-negative numbers that sum to 1.
    """
    _check_fractions(fractions)
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=6).digest()
    position = int.from_bytes(digest, "big") / 2**48  # exact in a float, hence below 1
    if position < fractions[0]:
        return "train"
    # With no test share the interval ends at 1 exactly, not at a sum that rounding made smaller.
    return "validation" if fractions[2] == 0 or position < fractions[0] + fractions[1] else "test"


def _check_fractions(fractions: Fractions) -> None:
    if len(fractions) != 3 or not all(share >= 0 for share in fractions) or not math.isclose(sum(fractions), 1):
        raise ValueError(f"fractions are the shares of train, validation and test and sum to 1, got {fractions}")


def _merge(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """One ``Prompt`` a text: the references of all in order, without repeats; the metadata of the first."""
    metadata: dict[str, Mapping[str, Any]] = {}
    references: dict[str, dict[str, None]] = {}
    for prompt in prompts:
        metadata.setdefault(prompt.text, prompt.metadata)
        references.setdefault(prompt.text, {}).update(dict.fromkeys(prompt.references))
    return tuple(Prompt(text, tuple(references[text]), metadata[text]) for text in metadata)
