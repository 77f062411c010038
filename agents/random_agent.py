"""The floor under every comparison: an agent that picks tokens at random."""

from __future__ import annotations

import math

from transformers import PreTrainedModel

from agents.base import TextAlgorithm
from agents.policy import TextPolicy
from agents.trajectories import Trajectories


class Random(TextAlgorithm):
    """A uniform choice among the allowed tokens: a policy at infinite temperature. It never learns."""

    def _make_policy(self, model: PreTrainedModel, vocab_size: int) -> TextPolicy:
        return TextPolicy(model, vocab_size, temperature=math.inf, precision=self.config.precision)

    def _make_reference(self) -> TextPolicy | None:
        return None

    def train(self, trajectories: Trajectories) -> None:
        """Nothing."""
