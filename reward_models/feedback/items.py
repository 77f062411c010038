"""What annotators are asked about: a prompt, and one text to rate, two to compare, k to rank, or none, to write one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from reward_models.feedback.answers import (
    MAX_TEXT,
    Answer,
    FeedbackError,
    Kind,
    Skip,
    Write,
    check_answer,
    check_text,
    read_answer,
)
from textgen_env.lookup import did_you_mean
from textgen_env.tasks.records import read_jsonl

MAX_NAME = 200
"""Characters in an id, a source's or an annotator's name."""
MAX_COMPLETIONS = 16
"""Texts in a ranking."""
SCALE = (1.0, 7.0)
"""Lowest and highest rating where an item does not say: the seven points of Ouyang et al. (2022)."""

KINDS: tuple[Kind, ...] = get_args(Kind)
_COUNTS = {"rating": (1, 1), "comparison": (2, 2), "ranking": (2, MAX_COMPLETIONS), "demonstration": (0, 0)}
_FIELDS = ("prompt", "completions", "kind", "sources", "gold", "scale", "id")


@dataclass(frozen=True, slots=True)
class Item:
    """One question, the same for all annotators.

    Raises:
        FeedbackError: the number of completions does not fit the kind, two of them are the same text, there is not one
            source a completion, the gold answer answers something else, the scale is no range, or a text is empty.
        TooLong: a text over `MAX_TEXT` characters, a name over `MAX_NAME`.

    >>> Item.of("2 + 2 =", ["4", "5"], sources=["ppo", "sft"]).kind
    'comparison'
    """

    id: str
    kind: Kind
    prompt: str
    completions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """Which policy wrote each completion, or () where that is not known; never shown."""
    gold: Answer | None = None
    """The known answer, indices in the order of ``completions``: such an item tests annotators; never shown."""
    scale: tuple[float, float] | None = None
    """Of a rating: its lowest and highest value."""

    @classmethod
    def of(
        cls,
        prompt: str,
        completions: Sequence[str] = (),
        *,
        kind: Kind | None = None,
        sources: Sequence[str] = (),
        gold: Answer | None = None,
        scale: tuple[float, float] | None = None,
        id: str | None = None,
    ) -> Item:
        """An item whose kind follows from the number of completions, and whose id from all of them.

        Args:
            prompt: what is to be completed.
            completions: none: to demonstrate; one: to rate; two: to compare; more: to rank.
            kind: where it is not that: a ranking of two.
            sources: who wrote each, in the same order.
            gold: the known answer.
            scale: of a rating; default `SCALE`.
            id: default: a hash of prompt, completions, kind and sources.

        Raises:
            FeedbackError: as for the class.
        """
        if isinstance(completions, str):
            raise FeedbackError("completions are a list of texts, got one string")
        if kind is None:
            by_count: tuple[Kind, ...] = ("demonstration", "rating", "comparison", "ranking")
            kind = by_count[min(len(completions), 3)]
        if kind == "rating" and scale is None:
            scale = SCALE
        if id is None:
            content = json.dumps([prompt, list(completions), kind, list(sources)], default=str)
            id = hashlib.blake2b(content.encode(), digest_size=12).hexdigest()
        return cls(id, kind, prompt, tuple(completions), tuple(sources), gold, scale)

    def __post_init__(self) -> None:
        check_text(self.id, "an item's id", MAX_NAME)
        where = f"item '{self.id}'"
        if not self.id.strip():
            raise FeedbackError("an item's id is empty")
        if self.kind not in KINDS:
            raise FeedbackError(f"{where}: unknown kind {self.kind!r}; {did_you_mean(str(self.kind), KINDS)}")
        check_text(self.prompt, f"{where}, the prompt", MAX_TEXT)
        if not self.prompt.strip():
            raise FeedbackError(f"{where}: the prompt is empty")
        fewest, most = _COUNTS[self.kind]
        if not fewest <= len(self.completions) <= most:
            wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
            raise FeedbackError(f"{where}: a {self.kind} has {wanted} completions, got {len(self.completions)}")
        for number, text in enumerate(self.completions, start=1):
            check_text(text, f"{where}, completion {number}", MAX_TEXT)
        if len(set(self.completions)) < len(self.completions):
            raise FeedbackError(f"{where}: two of its completions are the same text, so there is nothing to judge")
        if self.sources and len(self.sources) != len(self.completions):
            raise FeedbackError(f"{where}: {len(self.sources)} sources for {len(self.completions)} completions")
        for source in self.sources:
            check_text(source, f"{where}, a source", MAX_NAME)
        if (self.kind == "rating") != (self.scale is not None):
            raise FeedbackError(f"{where}: a rating has a scale, and nothing else has one")
        if self.scale is not None and not -1e9 <= self.scale[0] < self.scale[1] <= 1e9:
            raise FeedbackError(f"{where}: a scale is a lowest and a highest rating, got {self.scale}")
        if self.gold is not None:
            if isinstance(self.gold, (Skip, Write)):
                raise FeedbackError(f"{where}: a gold answer is a rating, a preference or a ranking")
            check_answer(self.gold, self.kind, len(self.completions), self.scale, f"{where}, the gold answer")

    def to_json(self) -> dict[str, Any]:
        """The fields of a record, as `read_items` reads them; what is absent or the default is left out."""
        record: dict[str, Any] = {"prompt": self.prompt, "completions": list(self.completions), "kind": self.kind}
        if self.sources:
            record["sources"] = list(self.sources)
        if self.scale is not None:
            record["scale"] = list(self.scale)
        if self.gold is not None:
            record["gold"] = self.gold.to_json()
        return {**record, "id": self.id}


def read_item(record: Mapping[str, Any], where: str, kind: Kind | None = None) -> Item:
    """The item of a record: ``{"prompt"}``, perhaps ``completions, kind, sources, gold, scale, id``.

    Args:
        record: its fields.
        where: starts the messages.
        kind: of items that do not say theirs.

    Raises:
        FeedbackError: an unknown field, a wrong type, or no such item; the message starts with ``where``.
    """
    for field in record:
        if field not in _FIELDS:
            raise FeedbackError(f"{where}: unknown field '{field}'; {did_you_mean(field, _FIELDS)}")
    if "prompt" not in record:
        raise FeedbackError(f"{where}: no field 'prompt'")
    lists = {name: record.get(name) or [] for name in ("completions", "sources")}
    for name, values in lists.items():
        if not isinstance(values, list):
            raise FeedbackError(f"{where}, field '{name}': expected a list, got {type(values).__name__}")
    scale = record.get("scale")
    if scale is not None and not (
        isinstance(scale, list) and len(scale) == 2 and all(type(end) in (int, float) for end in scale)
    ):
        raise FeedbackError(f"{where}, field 'scale': expected [lowest, highest], got {scale!r:.80}")
    gold = record.get("gold")
    try:
        return Item.of(
            record["prompt"],
            lists["completions"],
            kind=record.get("kind", kind),
            sources=lists["sources"],
            gold=None if gold is None else read_answer(gold, "the gold answer"),
            scale=None if scale is None else (float(scale[0]), float(scale[1])),
            id=record.get("id"),
        )
    except FeedbackError as error:
        raise type(error)(f"{where}: {error}") from error


def read_items(path: str | PathLike[str], kind: Kind | None = None) -> list[Item]:
    """The items of a JSON-lines file (UTF-8), one object a line (`read_item`).

    Raises:
        FeedbackError: a record is no item; the message names file and line.
        ValueError: the file is no JSON lines, or empty.
        OSError: it cannot be read.
    """
    return [read_item(record, where, kind) for where, record in read_jsonl(path)]


def write_items(path: str | PathLike[str], items: Iterable[Item]) -> None:
    """Write items as JSON lines, all or nothing.

    Raises:
        OSError: the file cannot be written.
    """
    part = Path(f"{path}.part")
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in items)
    part.replace(path)
