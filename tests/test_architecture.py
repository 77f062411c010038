"""The stair of the house: a room imports only from the floors below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("textgen_env", "reward_models", "agents", "benchmarks")

FORBIDDEN = {
    "textgen_env": {"torch", "stable_baselines3", "reward_models", "agents", "benchmarks"},
    "reward_models": {"stable_baselines3", "agents", "benchmarks"},
    "agents": {"reward_models", "benchmarks"},
    "benchmarks": set(),
}
ALLOWED = {
    room: {"reward_models"}
    for room in (
        *("agents.adversarial", "agents.alignment", "agents.cli", "agents.feedback_cli", "agents.pipeline"),
        *("agents.reward_cli", "agents.rlhf"),
    )
}
"""The top rooms of ``agents``, where a reward by name becomes an object."""


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every absolute import, wherever it stands in the source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):  # a relative one stays in its room
            names = [node.module] if node.module and not node.level else []
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            names = [str(node.args[0].value)] if called in ("import_module", "__import__") else []
        else:
            continue
        for name in names:
            yield node.lineno, name.partition(".")[0]


def offences(module: str, source: str) -> list[str]:
    """What a module imports although it stands on a floor above."""
    parts = module.split(".")
    allowed = ALLOWED.get(".".join(parts[:2]), set())
    forbidden = FORBIDDEN[parts[0]] - allowed
    return [f"{module}:{line} imports {name}" for line, name in imported(source) if name in forbidden]


def modules() -> dict[str, str]:
    """Dotted name -> source of every module of the rooms."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text("utf-8")
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    }


MODULES = modules()


def test_every_room_was_looked_at():
    assert {name.partition(".")[0] for name in MODULES} >= {"textgen_env", "reward_models", "agents"}
    assert {"textgen_env.env", "textgen_env.tasks.dataset", "agents.ppo", "reward_models"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_stair(module):
    assert offences(module, MODULES[module]) == []


@pytest.mark.parametrize("module", [name for name in MODULES if not name.rpartition(".")[2].startswith("_")])
def test_module_has_a_docstring(module):
    assert ast.get_docstring(ast.parse(MODULES[module]))


SNEAKY = """
from __future__ import annotations
import numpy as np, torch.nn as nn
from .tokenizer import torch
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from agents.ppo import PPO

def later():
    from reward_models import Rouge
    import importlib
    importlib.import_module("benchmarks.run")
    return "import stable_baselines3"
"""


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("textgen_env.env", {3: "torch", 7: "agents", 10: "reward_models", 12: "benchmarks"}),
        ("reward_models.rules", {7: "agents", 12: "benchmarks"}),
        ("agents.ppo", {10: "reward_models", 12: "benchmarks"}),
        ("agents.cli", {12: "benchmarks"}),
        ("agents.climate", {10: "reward_models", 12: "benchmarks"}),
        ("benchmarks.run", {}),
    ],
)
def test_the_checker_sees_offences(module, expected):
    """Must fail: a made-up source that climbs the stair in every way there is."""
    assert sorted(offences(module, SNEAKY)) == sorted(
        f"{module}:{line} imports {name}" for line, name in expected.items()
    )
