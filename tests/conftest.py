"""What several rooms' tests share: a task small enough to count by hand, and the data folder where there is one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from textgen_env.tasks import TextTask

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

TINY = {
    "train": [
        ("the cat sat on", "the mat"),
        ("a bird sings in the morning and again at", "night"),
        ("two and two make", ["four", "4"]),
        ("why", None),
    ],
    "validation": [("the dog ran to", "the door")],
    "test": [("one and one make", "two")],
}


@pytest.fixture(scope="session")
def tiny_task() -> TextTask:
    """Four training prompts of very different lengths and one in each other split."""
    return TextTask.from_pairs(TINY, name="tiny")


@pytest.fixture
def tiny_jsonl(tmp_path: Path) -> Path:
    """A user's own file."""
    path = tmp_path / "tiny.jsonl"
    records = [{"prompt": f"count to {n}", "reference": str(n), "level": n % 3} for n in range(40)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The path of a file or folder of real data; the test is skipped where there is none."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"no {name} in {DATA.parent.name}/{DATA.name}")
        return path

    return find


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small models slow down tenfold where more threads than free cores fight over them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
