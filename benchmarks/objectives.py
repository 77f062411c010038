"""What a benchmark measures of an agent: one number, higher is better, on prompts it never learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from agents.base import TextAlgorithm
from agents.evaluation import evaluate
from textgen_env import TextMDP

Objective: TypeAlias = Callable[[TextAlgorithm, TextMDP], float]


def greedy_return(agent: TextAlgorithm, mdp: TextMDP) -> float:
    """The mean undiscounted return of the greedy answers to all prompts of ``mdp``'s split."""
    return evaluate(agent, mdp, num_prompts=len(mdp.prompts), greedy=True).mean


OBJECTIVES: Mapping[str, Objective] = {"return": greedy_return}
"""By the name that `Setup.objective` has."""
