"""The algorithms by name, for the command line and for loading what a run saved."""

from __future__ import annotations

from agents.a2c import A2C, A2CConfig
from agents.base import TextAlgorithm
from agents.cloning import CloningConfig, ExpertIteration, ExpertIterationConfig, Supervised
from agents.config import AlgorithmConfig
from agents.dqn import DQN, DQNConfig
from agents.grpo import GRPO, GRPOConfig
from agents.nlpo import NLPO, NLPOConfig
from agents.offline import ILQL, ILQLConfig
from agents.ppo import PPO, PPOConfig
from agents.random_agent import Random
from agents.reinforce import REINFORCE, REINFORCEConfig
from textgen_env.lookup import did_you_mean

ALGORITHMS: dict[str, tuple[type[TextAlgorithm], type[AlgorithmConfig]]] = {
    "reinforce": (REINFORCE, REINFORCEConfig),
    "a2c": (A2C, A2CConfig),
    "ppo": (PPO, PPOConfig),
    "grpo": (GRPO, GRPOConfig),
    "nlpo": (NLPO, NLPOConfig),
    "dqn": (DQN, DQNConfig),
    "ilql": (ILQL, ILQLConfig),
    "supervised": (Supervised, CloningConfig),
    "expert_iteration": (ExpertIteration, ExpertIterationConfig),
    "random": (Random, AlgorithmConfig),
}
"""Name -> the agent's class and its options."""


def find_algorithm(name: str) -> tuple[type[TextAlgorithm], type[AlgorithmConfig]]:
    """The class and the options of an algorithm.

    Raises:
        ValueError: there is none of that name; the message names the nearest.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm '{name}'; {did_you_mean(name, ALGORITHMS)}")
    return ALGORITHMS[name]
