"""Judgements as files to learn from, and back: JSON lines that reward models and tasks read, or CSV for a spreadsheet.

=================  ==========================================  =====================================================
file               fields                                      read by
=================  ==========================================  =====================================================
ratings            prompt, completion, rating, scale           ``reward_models.preference.read_preferences``
comparisons        prompt, chosen, rejected, margin, tie       the same; in a tie, the order says nothing
rankings           prompt, ranking (best first)                the same
demonstrations     prompt, reference                           ``TextTask.from_jsonl``
=================  ==========================================  =====================================================

All have annotator (a pseudonym), created, guidelines (the version), seconds and item; where there are texts, also their
``order``, as indices of the item's own, the order in which they were ``shown`` and, if known, their ``sources``.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

from reward_models.feedback.answers import FeedbackError, Kind, Prefer, Rank, Rate, Write
from reward_models.feedback.items import SCALE, Item
from reward_models.feedback.store import FeedbackStore
from reward_models.feedback.types import Judgement, Purpose
from textgen_env.lookup import did_you_mean
from textgen_env.tasks.dataset import split_of
from textgen_env.tasks.records import read_jsonl

Format: TypeAlias = Literal["jsonl", "csv"]

FRESH: tuple[Purpose, ...] = ("fresh",)
_REQUIRED = object()
_FORMULA = re.compile(r"[=+\-@\t\r\n]")
"""What a cell begins with that a spreadsheet takes for a formula, or that hides one (OWASP, "CSV Injection")."""


def to_record(judgement: Judgement) -> dict[str, Any]:
    """The fields of one judgement."""
    item, answer = judgement.item, judgement.answer
    record: dict[str, Any] = {"prompt": item.prompt}
    if isinstance(answer, Rate):
        record |= {"completion": item.completions[0], "rating": answer.rating, "scale": list(item.scale or ())}
        order = [0]
    elif isinstance(answer, Prefer):
        order = [1, 0] if answer.preferred == 1 else [0, 1]
        chosen, rejected = (item.completions[index] for index in order)
        record |= {"chosen": chosen, "rejected": rejected, "margin": answer.margin, "tie": answer.preferred is None}
    elif isinstance(answer, Rank):
        order = list(answer.ranking)
        record |= {"ranking": [item.completions[index] for index in order]}
    elif isinstance(answer, Write):
        order = []
        record |= {"reference": answer.text}
    else:
        raise FeedbackError("a skip is no judgement to export")
    record |= {
        "annotator": judgement.annotator,
        "created": judgement.created.isoformat(timespec="milliseconds"),
        "guidelines": judgement.guidelines,
        "seconds": judgement.seconds,
        "item": item.id,
    }
    if order:
        record |= {"order": order, "shown": list(judgement.shown)}
    if item.sources:
        record["sources"] = [item.sources[index] for index in order]
    return record


def export_judgements(
    judgements: Iterable[Judgement],
    folder: str | PathLike[str],
    *,
    format: Format = "jsonl",
    validation: float = 0.0,
    purposes: Collection[Purpose] = FRESH,
) -> dict[Path, int]:
    """Write judgements, a file a kind: ``comparisons.jsonl``, or ``comparisons.train.jsonl`` and its counterpart.

    Args:
        judgements: as `FeedbackStore.judgements` gives them.
        folder: made where there is none.
        format: CSV has lists as JSON, and an apostrophe before text that a spreadsheet would run.
        validation: share of the prompts to hold out; their hash decides, as in ``split_preferences``.
        purposes: what to write; answers to gold items and repeats tell of annotators rather than of texts.

    Returns:
        How many judgements each file got.

    Raises:
        FileExistsError: one of the files is there already.
        FeedbackError: there is nothing to write, a share is out of range or leaves a side empty, or the format is
            unknown.
        OSError: a file cannot be written.
    """
    if format not in _WRITERS:
        raise FeedbackError(f"unknown format '{format}'; {did_you_mean(str(format), _WRITERS)}")
    if not 0 <= validation < 1:
        raise FeedbackError(f"the validation share must lie in [0, 1), got {validation}")
    parts: dict[Kind, dict[str, list[dict[str, Any]]]] = {}
    for judgement in judgements:
        if judgement.purpose in purposes:
            split = f".{split_of(judgement.item.prompt, (1 - validation, validation, 0.0))}" if validation else ""
            parts.setdefault(judgement.item.kind, {}).setdefault(split, []).append(to_record(judgement))
    if not parts:
        raise FeedbackError(f"there are no judgements to write ({', '.join(purposes) or 'no purpose'})")
    for kind, by_split in parts.items():
        if validation and len(by_split) == 1:
            ((split, records),) = by_split.items()
            prompts = len({record["prompt"] for record in records})
            raise FeedbackError(
                f"{kind}s: a validation share of {validation} puts all {prompts} prompts into {split[1:]}: "
                "change the share, or export without it"
            )
    files = {
        Path(folder, f"{kind}s{split}.{format}"): records
        for kind, by_split in parts.items()
        for split, records in by_split.items()
    }
    for path in files:
        if path.exists():
            raise FileExistsError(f"'{path}' is there already: name another folder")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, records in files.items():
        part = Path(f"{path}.part")
        with part.open("w", encoding="utf-8", newline="") as file:
            _WRITERS[format](file, records)
        part.replace(path)
    return {path: len(records) for path, records in files.items()}


def formula_safe(cell: Any) -> Any:
    r"""A text that a spreadsheet might run, with an apostrophe before it; all else as it is.

    >>> formula_safe("=1+1"), formula_safe(-1.5)
    ("'=1+1", -1.5)
    """
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def _write_jsonl(file: TextIO, records: list[dict[str, Any]]) -> None:
    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _write_csv(file: TextIO, records: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for record in records for column in record))
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    for record in records:
        writer.writerow(
            {
                column: json.dumps(value, ensure_ascii=False)
                if isinstance(value, (list, bool))
                else formula_safe(value)
                for column, value in record.items()
            }
        )


_WRITERS: dict[str, Callable[[TextIO, list[dict[str, Any]]], None]] = {"jsonl": _write_jsonl, "csv": _write_csv}


# ---------------------------------------------------------------- back


def import_judgements(
    store: FeedbackStore,
    path: str | PathLike[str],
    *,
    annotator: str = "imported",
    scale: tuple[float, float] = SCALE,
) -> tuple[int, int]:
    """Read exported JSON lines, or others of that form, into a store: items that are not there yet, and judgements.

    All or nothing; what is there already is left alone, so a file can be read twice. Pseudonyms stay what they are,
    other annotators' names become pseudonyms. Without "item", records on the same texts are about one item.

    Args:
        store: where to.
        path: the file, one kind or several.
        annotator: whose judgements those without an "annotator" are.
        scale: of ratings without a "scale".

    Returns:
        How many judgements are new, and how many were there.

    Raises:
        FeedbackError: a record is no judgement, or contradicts the store; the message names file and line.
        ValueError: the file is no JSON lines, or empty.
        OSError: it cannot be read.
    """
    new = known = 0
    with store.transaction():
        items = store.items()
        for where, record in read_jsonl(path):
            try:
                item, answer = _read_record(record, scale)
                there = items.get(item.id)
                if there is None:
                    store.add_items([item])
                    items[item.id] = item
                elif (there.kind, there.prompt, there.completions) != (item.kind, item.prompt, item.completions):
                    raise FeedbackError(f"there is another item '{item.id}' already")
                added = store.add_judgement(
                    item.id,
                    _field(record, "annotator", str, annotator),
                    answer,
                    shown=_list(record, "shown", int, ()) or None,
                    seconds=_field(record, "seconds", (int, float), None),
                    guidelines=_field(record, "guidelines", int, 0),
                    created=_created(record),
                )
            except FeedbackError as error:
                raise type(error)(f"{where}: {error}") from error
            new, known = new + added, known + (not added)
    return new, known


def _read_record(record: Mapping[str, Any], scale: tuple[float, float]) -> tuple[Item, Rate | Prefer | Rank | Write]:
    """What a record is about, and what it says."""
    prompt = _field(record, "prompt", str)
    if "rating" in record:
        low, high = _list(record, "scale", (int, float), scale, length=2)
        item = _item(record, prompt, [_field(record, "completion", str)], "rating", (float(low), float(high)))
        return item, Rate(float(_field(record, "rating", (int, float))))
    if "chosen" in record:
        texts = [_field(record, "chosen", str), _field(record, "rejected", str)]
        tie, margin = _field(record, "tie", bool, False), _field(record, "margin", (int, float), 0.0)
        item = _item(record, prompt, texts, "comparison")
        return item, Prefer(None if tie else item.completions.index(texts[0]), float(margin))
    if "ranking" in record:
        texts = _list(record, "ranking", str)
        item = _item(record, prompt, texts, "ranking")
        return item, Rank(tuple(item.completions.index(text) for text in texts))
    if "reference" in record:
        return _item(record, prompt, [], "demonstration"), Write(_field(record, "reference", str))
    raise FeedbackError("one of rating, chosen, ranking and reference is wanted: these are no judgement's fields")


def _item(
    record: Mapping[str, Any],
    prompt: str,
    texts: list[str],
    kind: Kind,
    scale: tuple[float, float] | None = None,
) -> Item:
    """The item with its texts in its own order: that of the export, or else sorted, whoever preferred which."""
    if len(set(texts)) < len(texts):
        raise FeedbackError("two of the texts are the same, so nothing was judged")
    order = [sorted(texts).index(text) for text in texts]
    if "item" in record:
        order = _list(record, "order", int, order, length=len(texts))
    if sorted(order) != list(range(len(texts))):
        raise FeedbackError(f"field 'order': {order} does not number {len(texts)} texts")
    sources = _list(record, "sources", str, ()) and _list(record, "sources", str, length=len(texts))
    places = [order.index(index) for index in range(len(texts))]
    return Item.of(
        prompt,
        [texts[place] for place in places],
        kind=kind,
        sources=[sources[place] for place in places] if sources else (),
        scale=scale,
        id=_field(record, "item", str, None),
    )


def _list(
    record: Mapping[str, Any],
    name: str,
    kind: type | tuple[type, ...],
    default: Sequence[Any] | None = None,
    length: int | None = None,
) -> list[Any]:
    """A list of one type of values, perhaps of a given length; the default, if there is one, where it is absent."""
    values = _field(record, name, list, _REQUIRED if default is None else list(default))
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise FeedbackError(f"field '{name}': got {values!r:.60}")
    if length is not None and len(values) != length:
        raise FeedbackError(f"field '{name}': {length} values are wanted, got {len(values)}")
    return values


def _created(record: Mapping[str, Any]) -> datetime | None:
    text = _field(record, "created", str, None)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.removesuffix("Z") + "+00:00" if text.endswith("Z") else text)
    except ValueError as error:
        raise FeedbackError(f"field 'created': '{text}' is no date and time in ISO 8601") from error
    if moment.tzinfo is None:
        raise FeedbackError(f"field 'created': '{text}' has no time zone: add +00:00 for UTC")
    return moment


def _field(record: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
    """A field of the right type; the default where it is absent or null."""
    value = record.get(name)
    if value is None:
        if default is _REQUIRED:
            raise FeedbackError(f"no field '{name}'; {did_you_mean(name, record)}")
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise FeedbackError(f"field '{name}': got {type(value).__name__} {value!r:.60}")
    return value
