"""The folder of a loop: a folder a stage, each done when its ``stage.json`` is there, which is written last.

config.json
start/                       texts of the model it starts from
round-1/1-samples/           items.jsonl, what is to be judged; samples.jsonl
        2-feedback/          feedback.db, the store; comparisons.jsonl or ratings.jsonl; given.jsonl
        3-reward-model/      model/, a Hugging Face folder; train.jsonl, validation.jsonl, test.jsonl
        4-policy/            model/, a Hugging Face folder; agent.zip; progress.csv
        5-evaluation/        samples.jsonl
round-2/...
result.json, report.html, report.md, curves.png
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.callbacks import replace_file
from agents.run_folder import write_json

SAMPLES, FEEDBACK, REWARD_MODEL, POLICY, EVALUATION = STAGES = (
    "1-samples",
    "2-feedback",
    "3-reward-model",
    "4-policy",
    "5-evaluation",
)


@dataclass(frozen=True)
class Stage:
    """One stage's folder."""

    path: Path

    @property
    def mark(self) -> Path:
        """What the stage found; where it is, the stage is done."""
        return self.path / "stage.json"

    @property
    def found(self) -> dict[str, Any] | None:
        """What the finished stage found; None before that."""
        return json.loads(self.mark.read_text(encoding="utf-8")) if self.mark.is_file() else None

    def clear(self) -> None:
        """Empty the folder: what an interrupted attempt left there is half of something."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)

    def finish(self, found: Mapping[str, Any]) -> None:
        """Declare the stage done."""
        write_json(self.mark, found)


@dataclass(frozen=True)
class LoopFolder:
    """The files of a loop by name."""

    path: Path

    @property
    def config(self) -> Path:
        """Every option with its value."""
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        """What the rounds found so far."""
        return self.path / "result.json"

    @property
    def start(self) -> Stage:
        """The model it starts from, on held-out prompts."""
        return Stage(self.path / "start")

    def stage(self, round: int, name: str) -> Stage:
        """A stage of a round; rounds count from 1."""
        return Stage(self.path / f"round-{round}" / name)

    def read_config(self) -> dict[str, dict[str, Any]]:
        """Parts "settings", "fit" and "algorithm" of ``config.json``.

        Raises:
            FileNotFoundError: this is no loop's folder.
        """
        parts = json.loads(self.config.read_text(encoding="utf-8")) if self.config.is_file() else {}
        if "fit" not in parts:  # a run of 'textgen train' has a config too
            raise FileNotFoundError(
                f"'{self.path}' is no folder of 'textgen rlhf': it has no {self.config.name} of one"
            )
        return {name: parts[name] for name in ("settings", "fit", "algorithm")}


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, the file whole at every moment."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file that `write_lines`, or a store's export, wrote."""
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            yield json.loads(line)
