"""The texts to pretrain on: read from the user's files, held out by content, cut into segments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

from textgen_env.lookup import did_you_mean
from textgen_env.tasks.dataset import load_named, split_of
from textgen_env.tasks.records import field_of, read_jsonl

Segments: TypeAlias = Literal["document", "sentence"]
TextSource: TypeAlias = str | PathLike[str]

_PLAIN = (".txt", ".text", ".md")
_SENTENCE = re.compile(r".+?(?:[.!?][\"'”’)\]]*(?=\s)|[。！？]|\n+|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """One text, and whatever else its record says: columns that a reward may ask for by name.

    Raises:
        ValueError: the text is empty.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError("a document is empty: leave it out")


def read_documents(
    sources: Iterable[TextSource], *, text_field: str = "text", separator: str | None = "\n\n"
) -> list[Document]:
    """The documents of files, folders and datasets, in their order; white space around them is cut, empty ones dropped.

    - A plain text file (.txt, .text, .md) holds documents between separators.
    - Each line of a .jsonl file is a JSON object; one of its fields is the document, the others its metadata.
    - A folder stands for all such files in it; one without any, and every other name, is a dataset that Hugging
      Face's ``datasets`` loads or finds saved, of which the train split is read.

    Args:
        sources: files, folders, names of datasets.
        text_field: the field of a record that is the document.
        separator: what stands between the documents of a plain text file; None reads a file as one document.

    Raises:
        TypeError: ``sources`` is one string.
        ValueError: a file is neither of those kinds or not UTF-8, a record has no such field, or there is no document.
        OSError: a file cannot be read.
        ImportError: a dataset is named, and ``datasets`` is not installed.
    """
    if isinstance(sources, (str, PathLike)):
        raise TypeError(f"sources must be a list of files or names, not one: read_documents([{str(sources)!r}])")
    if separator == "":
        raise ValueError("an empty separator parts nothing: None reads a file as one document")
    documents = [
        Document(text, metadata)
        for source in sources
        for text, metadata in _records(Path(source), text_field, separator)
        if text
    ]
    if not documents:
        raise ValueError(f"no text in {', '.join(map(str, sources))}")
    return documents


def split_documents(documents: Iterable[Document], validation_share: float) -> tuple[list[Document], list[Document]]:
    """Documents to learn from, and held-out ones. A hash of the text decides: equal texts are never on both sides.

    Raises:
        ValueError: the share lies outside [0, 1), or leaves a side empty that should have something.
    """
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must lie in [0, 1), got {validation_share}")
    sides: dict[str, list[Document]] = {"train": [], "validation": []}
    for document in documents:
        sides[split_of(document.text, (1 - validation_share, validation_share, 0.0))].append(document)
    train, validation = sides["train"], sides["validation"]
    if not train or (validation_share and not validation):
        raise ValueError(
            f"of {len(train) + len(validation)} documents, {len(validation)} would be held out: give more documents "
            "(--separator says what parts those of a text file), or set validation_share to 0"
        )
    return train, validation


def segments_of(text: str, segments: Segments) -> list[str]:
    r"""The parts of a text that are judged each by itself; joined, they are the text.

    A sentence ends at an end mark before white space, or with its line; the white space after it begins the next.

    >>> segments_of('"Stop!" he said. No.\nNever', "sentence")
    ['"Stop!"', ' he said.', ' No.', '\nNever']

    Args:
        text: the text.
        segments: "document" for the whole, or "sentence".
    """
    if segments == "document":
        return [text]
    found: list[str] = []
    blank = ""
    for piece in _SENTENCE.findall(text):
        if piece.isspace():
            blank += piece
        else:
            found.append(blank + piece)
            blank = ""
    return [*found[:-1], found[-1] + blank] if found else [text]


def _records(source: Path, text_field: str, separator: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each text, perhaps empty, and what is known of it besides."""
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix in (*_PLAIN, ".jsonl"))
        if files and not (source / "dataset_info.json").exists():
            for file in files:
                yield from _records(file, text_field, separator)
            return
    elif source.suffix in _PLAIN:
        yield from ((part.strip(), {}) for part in _parts(source, separator))
        return
    elif source.suffix == ".jsonl":
        for where, record in read_jsonl(source):
            yield _text_and_rest(record, text_field, where)
        return
    elif source.is_file():
        raise ValueError(f"'{source}' is neither plain text ({', '.join(_PLAIN)}) nor .jsonl: convert it, or rename it")
    for number, row in enumerate(_dataset(source)):
        yield _text_and_rest(row, text_field, f"{source}, row {number}")


def _parts(path: Path, separator: str | None) -> Sequence[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid UTF-8: {error}") from error
    return [text] if separator is None else text.split(separator)


def _text_and_rest(record: Mapping[str, Any], text_field: str, where: str) -> tuple[str, Mapping[str, Any]]:
    try:
        text = field_of(record, text_field)
    except KeyError:
        raise ValueError(f"{where}: no field '{text_field}'; {did_you_mean(text_field, record)}") from None
    if not isinstance(text, str):
        raise ValueError(f"{where}, field '{text_field}': expected a string, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: lone surrogate {text[error.start]!r}, not valid Unicode") from error
    return text.strip(), {key: value for key, value in record.items() if key != text_field}


def _dataset(source: Path) -> Iterable[Mapping[str, Any]]:
    """The rows of a dataset's train split."""
    if any((source / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                f"reading '{source}' needs the datasets package: pip install textgen-env[datasets]"
            ) from error
        found: Any = datasets.load_from_disk(str(source))
    else:
        found = load_named(str(source))
    if isinstance(found, Mapping):
        if "train" not in found:
            raise ValueError(f"dataset '{source}' has no train split; {did_you_mean('train', map(str, found))}")
        return found["train"]
    return found
