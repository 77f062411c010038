"""From a record of a file to a ``Prompt``: reading, checking, and saying where a record is wrong."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeAlias

from textgen_env.lookup import did_you_mean
from textgen_env.types import Prompt

Record: TypeAlias = tuple[str, Mapping[str, Any]]
"""Where a record stands ("data.jsonl, line 3"), and its fields."""

Change: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From the fields of a record to those that are read; a ``ValueError`` it raises is told with the record's place."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COLUMN = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Columns:
    """Which fields of a record become the prompt and the references; all others become metadata.

    Raises:
        ValueError: the template does not contain ``{prompt}``.
    """

    prompt: str = "prompt"
    """A string, or a list of strings, which are joined with a space. ``"a.b"`` is column ``b`` inside column ``a``."""
    reference: str | None = "reference"
    """A string or a list of strings; null, "" and [] mean "no reference". ``None``: no such field."""
    template: str = "{prompt}"
    """What the prompt is written into; it may name metadata columns too. Other braces stay as they are."""
    change: Change | None = None
    """Applied to every record before it is read."""

    def __post_init__(self) -> None:
        if "{prompt}" not in self.template:
            raise ValueError(f"template {self.template!r} does not contain '{{prompt}}'")

    def prompt_of(self, record: Mapping[str, Any], where: str) -> Prompt:
        """The ``Prompt`` of a record.

        Raises:
            ValueError: a field is absent, empty or of the wrong type; the message starts with ``where``.
        """
        if self.change is not None:
            try:
                record = self.change(record)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        values: list[Any] = [None, None]
        for place, (argument, column) in enumerate(
            (("prompt_field", self.prompt), ("reference_field", self.reference))
        ):
            if column is None:
                continue
            try:
                values[place] = field_of(record, column)
            except KeyError:
                mend = f"Name it with {argument}=..."
                if argument == "reference_field":
                    mend += ", or pass reference_field=None where there are no references"
                hint = did_you_mean(column, [*record, *_inner_columns(record)])
                raise ValueError(f"{where}: no field '{column}'; {hint}. {mend}") from None
        used = (self.prompt, self.reference)
        metadata = {column: value for column, value in record.items() if column not in used}
        return self.build(values[0], values[1], metadata, where)

    def build(self, text: Any, references: Any, metadata: Mapping[str, Any], where: str) -> Prompt:
        """The ``Prompt`` of a text, its references (``None``, a string or several) and its metadata.

        Raises:
            ValueError: as for ``prompt_of``.
        """
        body = _text(text, f"{where}, field '{self.prompt}'")
        if not body.strip():
            raise ValueError(f"{where}, field '{self.prompt}': the prompt is empty")
        for column, value in metadata.items():
            if isinstance(value, str):
                _check_unicode(value, f"{where}, field '{column}'")

        def fill(match: re.Match[str]) -> str:
            column = match[1]
            if column == "prompt":
                return body
            if column not in metadata:
                hint = did_you_mean(column, ["prompt", *metadata])
                raise ValueError(f"{where}: the template names '{{{column}}}', which is no column; {hint}")
            value = metadata[column]
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return str(value)
            return _text(value, f"{where}, field '{column}'")

        # One pass over the template: braces inside the data are never read as columns.
        rendered = _COLUMN.sub(fill, self.template)
        found = _references(references, f"{where}, field '{self.reference}'")
        return Prompt(rendered, found, dict(metadata))


def field_of(record: Mapping[str, Any], column: str) -> Any:
    """The value of a column; ``"answers.text"`` is ``"text"`` inside ``"answers"``, unless a column has that very name.

    Raises:
        KeyError: there is no such column.
    """
    if column in record:
        return record[column]
    outer, _, inner = column.partition(".")
    if not inner or not isinstance(record.get(outer), Mapping):
        raise KeyError(column)
    return field_of(record[outer], inner)


def _inner_columns(record: Mapping[str, Any]) -> Iterator[str]:
    for outer, value in record.items():
        if isinstance(value, Mapping):
            yield from (f"{outer}.{inner}" for inner in value)


def read_jsonl(path: str | PathLike[str]) -> Iterator[Record]:
    r"""The objects of a JSON-lines file (UTF-8). Lines end at "\n" only; blank lines are skipped.

    Raises:
        ValueError: not UTF-8, not JSON, not an object (naming file and line), or no record at all.
        OSError: the file cannot be read.
    """
    empty = True
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
        empty = False
        yield where, record
    if empty:
        raise ValueError(f"{path}: the file holds no records")


def read_csv(path: str | PathLike[str]) -> Iterator[Record]:
    """The rows of a CSV file (UTF-8, with a header). The line named in errors is the row's first.

    Raises:
        ValueError: not UTF-8, bad quoting, a doubled or empty column name, a row with too few or too many
            fields (naming file and line), or no row at all.
        OSError: the file cannot be read.
    """
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] | None = None
    empty = True
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where}: not valid CSV: {error}") from error
        if row is None:
            break
        if not row:
            continue
        if header is None:
            header = row
            for column in header:
                if not column or header.count(column) > 1:
                    raise ValueError(f"{where}: column names must be distinct and not empty, got {header}")
        elif len(row) != len(header):
            names = ", ".join(header)
            raise ValueError(f"{where}: {len(row)} fields, but the header has {len(header)} ({names})")
        else:
            empty = False
            yield where, dict(zip(header, row, strict=True))
    if empty:
        raise ValueError(f"{path}: the file holds no records")


def _lines(path: str | PathLike[str]) -> Iterator[str]:
    r"""Decoded lines, split at "\n" only: text mode and ``splitlines`` would also break lines elsewhere."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid UTF-8: {error}") from error


def _text(value: Any, where: str) -> str:
    """A string, or a list of strings joined with a space."""
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a string or a list of strings, got {_described(value)}")
    _check_unicode(value, where)
    return value


def _references(value: Any, where: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    references = (value,) if isinstance(value, str) else value
    if not isinstance(references, (list, tuple)) or not all(isinstance(text, str) for text in references):
        raise ValueError(f"{where}: expected a string or a list of strings, got {_described(value)}")
    for text in references:
        if not text:
            raise ValueError(f"{where}: a reference in the list is empty")
        _check_unicode(text, where)
    return tuple(references)


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: lone surrogate {text[error.start]!r}, not valid Unicode") from error


def _described(value: Any) -> str:
    """The type of a value, and for a list the types inside it."""
    if isinstance(value, (list, tuple)):
        return f"a list of {', '.join(sorted({type(part).__name__ for part in value}))}"
    return type(value).__name__
