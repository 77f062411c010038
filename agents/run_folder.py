"""The folder that a run leaves behind: its files by name, metrics and texts that a resumed run continues."""

from __future__ import annotations

import csv
import dataclasses
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, filter_excluded_keys, make_output_format

from agents.callbacks import replace_file
from agents.config import AlgorithmConfig
from agents.settings import RunSettings
from textgen_env.lookup import did_you_mean

STEP = "num_tokens"
"""The column of ``progress.csv`` that counts tokens."""

_PACKAGES = ("torch", "transformers", "tokenizers", "gymnasium", "stable-baselines3", "numpy")


def check_free(folder: Path, *, resumable: bool = True) -> None:
    """Refuse to write over something.

    Args:
        folder: what an output would go to.
        resumable: whether ``--resume`` goes on with what is there.

    Raises:
        FileExistsError: the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        mend = f", or go on with what is in it by --resume {folder}" if resumable else ""
        raise FileExistsError(f"the output folder '{folder}' is not empty: name another one with --output{mend}")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of a run. Each is written whole or appended to by lines, so that a killed run can be read."""

    path: Path

    @property
    def agent(self) -> Path:
        """The checkpoint: everything needed to go on."""
        return self.path / "agent.zip"

    @property
    def model(self) -> Path:
        """The language model and its tokenizer, as a Hugging Face folder."""
        return self.path / "model"

    @property
    def config(self) -> Path:
        """Every option with its value, and the versions of the packages."""
        return self.path / "config.json"

    @property
    def results(self) -> Path:
        """How far the run came, and what its evaluations found."""
        return self.path / "results.json"

    @property
    def progress(self) -> Path:
        """Every logged metric, a row an update."""
        return self.path / "progress.csv"

    @property
    def samples(self) -> Path:
        """Texts of every evaluation, one JSON object a line."""
        return self.path / "samples.jsonl"

    def write_config(self, settings: RunSettings, config: AlgorithmConfig, resolved: Mapping[str, Any]) -> None:
        """Write ``config.json``: the settings, the algorithm's options, and what defaults turned into."""
        write_json(
            self.config,
            {
                "settings": {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)},
                "algorithm": dataclasses.asdict(config),
                "resolved": resolved,
                "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            },
        )

    def read_config(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings and the algorithm's options, as `write_config` wrote them.

        Raises:
            FileNotFoundError: this is no run folder.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"'{self.path}' is no run folder: it has no {self.config.name}")
        written = json.loads(self.config.read_text(encoding="utf-8"))
        if not {"settings", "algorithm"} <= set(written):  # a model's folder has a config.json too
            raise FileNotFoundError(f"'{self.path}' is no run folder: its {self.config.name} is not that of a run")
        return written["settings"], written["algorithm"]

    def read_resolved(self) -> dict[str, Any]:
        """What `write_config` was told that defaults turned into; empty before it was."""
        if not self.config.is_file():
            return {}
        resolved: dict[str, Any] = json.loads(self.config.read_text(encoding="utf-8")).get("resolved", {})
        return resolved

    def read_results(self) -> dict[str, Any]:
        """What `results` holds; empty before there are any."""
        return json.loads(self.results.read_text(encoding="utf-8")) if self.results.is_file() else {}

    def read_progress(self) -> list[dict[str, float]]:
        """The rows of ``progress.csv``; a row holds the metrics that were logged in it."""
        if not self.progress.is_file():
            return []
        with self.progress.open(newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def forget_after(self, tokens: int) -> None:
        """Drop the metrics and texts of updates that a checkpoint at ``tokens`` does not hold: they come again."""
        rows = [row for row in self.read_progress() if row[STEP] <= tokens]
        if self.progress.is_file():
            write_rows(self.progress, rows)
        if self.samples.is_file():
            lines = self.samples.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= tokens]
            replace_file(self.samples, lambda path: path.write_text("".join(kept), encoding="utf-8"))

    def logger(self, *, tables: bool) -> Logger:
        """SB3's logger into ``progress.csv`` and TensorBoard, and as ``tables`` to the terminal."""
        formats = [ProgressFile(self), make_output_format("tensorboard", str(self.path))]
        if tables:
            formats.append(make_output_format("stdout", str(self.path)))
        return Logger(str(self.path), formats)


class ProgressFile(KVWriter):
    """``progress.csv``. SB3's own writer empties a file that is there, and orders its columns by chance."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.progress
        self._rows = folder.read_progress()
        self._columns = _columns(self._rows)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append a row; a metric that is new becomes a column."""
        row = filter_excluded_keys(key_values, key_excluded, "csv")
        self._rows.append({key: float(value) for key, value in row.items()})
        if set(row) <= set(self._columns):
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(self._rows[-1])
        else:
            self._columns = _columns(self._rows)
            write_rows(self._path, self._rows)

    def close(self) -> None:
        """Nothing to do: the file is closed after every row."""


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    """Write a CSV file with a header; a metric that a row lacks stays empty."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _columns(rows))
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON, the file whole at every moment. What JSON lacks (a function) is written as its repr."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def find_run(path: str | Path) -> RunFolder:
    """The run in a folder.

    Raises:
        FileNotFoundError: the folder holds no run; the message names a near one.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        near = [str(found.parent) for found in Path(path).parent.glob("*/config.json")]
        raise FileNotFoundError(f"'{path}' is no run folder (no config.json in it); {did_you_mean(str(path), near)}")
    return folder


def _columns(rows: list[dict[str, float]]) -> list[str]:
    return [STEP, *sorted({key for row in rows for key in row} - {STEP})]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else repr(value)
