"""A file of JSON lines that a run appends to and may be killed over at any moment."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, in order, unpacked if its name ends in ``.gz``; none where there is no file yet.

    What stands behind the last line break is a line that a killed run did not finish, unless it is whole: it is left
    out here and cut off by the next `append`.

    Raises:
        ValueError: another line is no JSON, or the file cannot be unpacked; the message names it.
    """
    if not path.exists():
        return []
    whole, _, tail = _content(path).rpartition(b"\n")
    lines = []
    for number, line in enumerate(whole.split(b"\n"), 1):
        if line:
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error}); delete the line") from error
    return lines if _torn(tail) or not tail else [*lines, json.loads(tail)]


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend(path)
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error


def _mend(path: Path) -> None:
    """Make the file end with a line break, without the torn line if there is one."""
    content = path.read_bytes() if path.exists() else b""
    whole, newline, tail = content.rpartition(b"\n")
    if tail and _torn(tail):
        os.truncate(path, len(whole + newline))
    elif tail:
        with path.open("ab") as file:
            file.write(b"\n")


def _torn(tail: bytes) -> bool:
    try:
        return not isinstance(json.loads(tail), dict)
    except ValueError:  # UnicodeDecodeError is one too
        return True
