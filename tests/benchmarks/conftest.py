"""A ladder whose runs take a second: the shape of everything is that of the real one."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import presets, setups
from textgen_env.tasks.rung import Hack, Rung

TINY = {
    "total_tokens": 300,
    "supervised": {"epochs": 2},
    "warm_start": {"epochs": 2, "learning_rate": 0.01},
    "env": {"task_kwargs": {"length": 2, "symbols": 8}},
    "size": {"layers": 1, "width": 16, "heads": 2},
}
RUNG = Rung(random=0.0, supervised=0.5, optimum=1.0, hack=Hack("none", str, None, 0.0, 0.0))
_SMALL = {
    "episodes_per_rollout": 32,
    "num_envs": 16,
    "n_steps": 8,
    "batch_size": 64,
    "n_epochs": 2,
    "per_device_train_batch_size": 16,
    "generation_batch_size": 32,
    "learning_starts": 32,
}


@pytest.fixture
def tiny_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tasks and the presets of the benchmarks, small; yields where outputs may go."""
    tasks = {"Reverse": TINY, "DelayedBit": {**TINY, "warm_start": None, "env": {}}}
    monkeypatch.setattr(setups, "_FILE", tmp_path / "tasks.json")
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    folder = tmp_path / "presets"
    folder.mkdir()
    for path in Path(presets.__file__).parent.glob("*.json"):
        defaults = json.loads(path.read_text())["defaults"]
        small = {name: value for name, value in _SMALL.items() if name in defaults or name == "episodes_per_rollout"}
        if path.stem.startswith(("sb3", "trl")):
            small.pop("episodes_per_rollout")
        (folder / path.name).write_text(json.dumps({"defaults": {**defaults, **small}, "tasks": {}}))
    monkeypatch.setattr(presets, "_FOLDER", folder)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
