"""Agents whose policy is a transformer."""

from agents.a2c import A2C as A2C
from agents.a2c import A2CConfig as A2CConfig
from agents.evaluation import Evaluation as Evaluation
from agents.evaluation import evaluate as evaluate
from agents.grpo import GRPO as GRPO
from agents.grpo import GRPOConfig as GRPOConfig
from agents.models import small_gpt2 as small_gpt2
from agents.nlpo import NLPO as NLPO
from agents.nlpo import NLPOConfig as NLPOConfig
from agents.ppo import PPO as PPO
from agents.ppo import PPOConfig as PPOConfig
from agents.reinforce import REINFORCE as REINFORCE
from agents.reinforce import REINFORCEConfig as REINFORCEConfig
from agents.supervised import SupervisedConfig as SupervisedConfig
from agents.supervised import supervised_fit as supervised_fit
from agents.trajectories import Trajectories as Trajectories
