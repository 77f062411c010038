"""Agents whose policy is a transformer."""

from agents.evaluation import Evaluation as Evaluation
from agents.evaluation import evaluate as evaluate
from agents.models import small_gpt2 as small_gpt2
from agents.ppo import PPO as PPO
from agents.ppo import PPOConfig as PPOConfig
from agents.supervised import SupervisedConfig as SupervisedConfig
from agents.supervised import supervised_fit as supervised_fit
from agents.trajectories import Trajectories as Trajectories
