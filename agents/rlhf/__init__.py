"""Reinforcement learning from human feedback: samples, judgements, reward model, policy, evaluation, and again."""

from agents.rlhf.loop import RLHFResult as RLHFResult
from agents.rlhf.loop import rlhf as rlhf
