"""Everything that turns finished (or growing) text into numbers."""

from reward_models.composite import Composable as Composable
from reward_models.composite import Product as Product
from reward_models.composite import Ratio as Ratio
from reward_models.composite import WeightedSum as WeightedSum
from reward_models.composite import as_reward as as_reward
from reward_models.metrics import Rouge as Rouge

__all__ = ["Composable", "Product", "Ratio", "Rouge", "WeightedSum", "as_reward"]
