"""Something trained, by its path: a run's folder, a model's folder, or a hub name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.algorithms import find_algorithm
from agents.base import TextAlgorithm
from agents.policy import TextPolicy
from agents.run_folder import RunFolder, find_run
from agents.settings import RunSettings
from textgen_env import Prompt, TextGenVectorEnv, TextMDP, TextTask


class PlainModel(TextAlgorithm):
    """A language model as an agent that only acts: it has no reference, so no KL, and does not learn."""

    def _make_reference(self) -> TextPolicy | None:
        return None


@dataclass(frozen=True)
class Saved:
    """Where something trained lies, and what it speaks."""

    source: str
    run: RunFolder | None
    """The run, where it is one."""
    tokenizer: str
    """A tokenizer's folder or hub name."""

    def settings_for(self, asked: Mapping[str, Any]) -> RunSettings:
        """Settings of the environment to evaluate in: those asked for, or else the run's own.

        Raises:
            ValueError: a model alone has no environment, and none was asked for.
        """
        if "env" in asked or "data" in asked:
            return RunSettings(**asked)
        if self.run is None:
            raise ValueError(f"'{self.source}' is a model without an environment: name one with --env or --data")
        own, _ = self.run.read_config()
        names = {field.name for field in dataclasses.fields(RunSettings)}
        return RunSettings(**{name: value for name, value in {**own, **asked}.items() if name in names})


def open_saved(source: str) -> Saved:
    """Find out what ``source`` is.

    Raises:
        FileNotFoundError: it is written as a path and nothing is there, or it is a folder without a model.
    """
    path = Path(source)
    if (path / "config.json").is_file() and not (path / "agent.zip").is_file():
        return Saved(source, None, source)  # a model's folder has a config.json too
    if (path / "agent.zip").is_file():
        return Saved(source, find_run(path), str(RunFolder(path).model))
    if path.is_dir():
        raise FileNotFoundError(f"'{source}' holds neither a run (agent.zip) nor a model (config.json)")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:  # a hub name is 'model' or 'owner/model'
        find_run(path)  # raises, with the nearest run's name
    return Saved(source, None, source)


def load_saved(saved: Saved, mdp: TextMDP | None = None, *, device: str = "auto") -> TextAlgorithm:
    """The agent: a run's own with its reference, or a `PlainModel`.

    Args:
        saved: what `open_saved` found.
        mdp: the environment it will act in; it has to speak ``saved.tokenizer``.
        device: "auto", "cpu", "cuda", ...

    Raises:
        OSError: the model cannot be read.
    """
    if saved.run is not None:
        settings, _ = saved.run.read_config()
        algorithm, _ = find_algorithm(settings["algo"])
        loaded: TextAlgorithm = algorithm.load(saved.run.agent, device=device)
        return loaded
    if mdp is None:  # just to speak: a task of one empty prompt gives the tokenizer
        mdp = TextMDP(TextTask("prompts", {"train": (Prompt(""),)}), _no_reward, saved.tokenizer, max_new_tokens=64)
    return PlainModel(saved.source, TextGenVectorEnv(1, mdp=mdp), device=device)


def _no_reward(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)
