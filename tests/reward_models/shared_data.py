"""Real texts beside the repository, for tests that skip where they are not there."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def records(file: str, count: int | None = None) -> list[dict[str, Any]]:
    """The first records of a JSONL file, or a skipped test."""
    with shared_file(file).open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in itertools.islice(lines, count)]


def shared_file(file: str) -> Path:
    path = SHARED / file
    if not path.exists():
        pytest.skip(f"{file} is not here")
    return path
