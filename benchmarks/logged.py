"""Logged episodes for offline learners, as setups name them."""

from __future__ import annotations

from agents.logged import reference_episodes
from agents.trajectories import Trajectories
from textgen_env import TextMDP


def references(mdp: TextMDP, seed: int) -> Trajectories:
    """The references of the split, scored by the environment: what the supervised baseline learns from too.

    Raises:
        ValueError: the split has no references.
    """
    return reference_episodes(mdp)
