"""Text generation as a Gymnasium MDP.

Importing the package registers its ids: ``gym.make("textgen_env/NewsSummary-v0")``.
"""

from textgen_env.env import TextGenEnv as TextGenEnv
from textgen_env.mdp import TextMDP as TextMDP
from textgen_env.registry import register as register
from textgen_env.registry import register_built_in
from textgen_env.reward import Reward as Reward
from textgen_env.reward import RewardError as RewardError
from textgen_env.reward import dense as dense
from textgen_env.reward_registry import register_reward as register_reward
from textgen_env.reward_registry import resolve_reward as resolve_reward
from textgen_env.reward_registry import reward_names as reward_names
from textgen_env.tasks import TextTask as TextTask
from textgen_env.tokenizer import TextTokenizer as TextTokenizer
from textgen_env.tokenizer import train_tokenizer as train_tokenizer
from textgen_env.tokenizer import word_tokenizer as word_tokenizer
from textgen_env.types import AllowedTokens as AllowedTokens
from textgen_env.types import Completion as Completion
from textgen_env.types import Prompt as Prompt
from textgen_env.types import RewardFunction as RewardFunction
from textgen_env.types import Scores as Scores
from textgen_env.types import StopReason as StopReason
from textgen_env.vector_env import TextGenVectorEnv as TextGenVectorEnv

register_built_in()
