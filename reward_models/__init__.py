"""Everything that turns finished (or growing) text into numbers."""

from reward_models.metrics import Rouge as Rouge

__all__ = ["Rouge"]
