"""What every contender of a task and a seed starts from: the same rules, budget and weights."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents import SupervisedConfig, supervised_fit
from agents.model_source import load_model
from agents.policy import TextPolicy
from benchmarks.setups import Setup
from textgen_env import TextMDP


@dataclass(frozen=True)
class Start:
    """The start of a task's contenders with one seed."""

    setup: Setup
    seed: int
    tokens: int
    """To sample from the environment."""
    mdp: TextMDP
    """The rules, on the train split."""
    weights: Mapping[str, Tensor]
    """Of the model they all start with: drawn with the seed, then warm-started where the setup says so."""
    warm_start_cpu_seconds: float
    device: str = "cpu"
    """Where to learn, and to be judged; the weights are made on the CPU for all."""

    def model(self) -> PreTrainedModel:
        """The model to start with, a new one at every call."""
        model = self.fresh_model()
        model.load_state_dict(dict(self.weights))
        return model

    def fresh_model(self) -> PreTrainedModel:
        """The same without the warm start."""
        return load_model(self.setup.make_model(self.mdp), self.seed)


def make_start(setup: Setup, seed: int, budget: float = 1.0, cache: Path | None = None) -> Start:
    """Draw the weights, and fit them to the references of the train split where the setup has a warm start.

    Args:
        setup: of the task.
        seed: of the weights and the order of the references.
        budget: scales the setup's tokens.
        cache: a folder that keeps warm-started weights, so that the first contender alone computes them.
    """
    mdp = setup.make_env(1).mdp
    tokens = max(1, round(setup.total_tokens * budget))
    if setup.warm_start is None:
        return Start(setup, seed, tokens, mdp, load_model(setup.make_model(mdp), seed).state_dict(), 0.0)
    path = None if cache is None else cache / f"{_key(setup, seed)}.pt"
    if path is not None and path.exists():
        kept = torch.load(path, weights_only=True)
    else:
        policy = TextPolicy(load_model(setup.make_model(mdp), seed), mdp.tokenizer.vocab_size)
        began = time.process_time()
        supervised_fit(policy, mdp, SupervisedConfig(**setup.warm_start), seed=seed)
        seconds = time.process_time() - began
        kept = {"weights": copy.deepcopy(policy.model.state_dict()), "cpu_seconds": seconds}
        if path is not None:
            beside = path.with_suffix(f".{os.getpid()}")  # another process may be writing the same
            torch.save(kept, beside)
            os.replace(beside, path)
    return Start(setup, seed, tokens, mdp, kept["weights"], kept["cpu_seconds"])


def _key(setup: Setup, seed: int) -> str:
    content: dict[str, Any] = {"seed": seed, **asdict(setup)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
