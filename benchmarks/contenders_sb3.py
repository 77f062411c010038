"""Stable-Baselines3's own PPO as a contender: a state at a time, the transformer as its features extractor.

Its options are SB3's own (`presets/sb3_ppo.json`), under their names in the documentation of
``stable_baselines3.PPO``, with the number of environments and the schedule of the learning rate beside them.

Rollouts of 1,024 states, batches of 256, four epochs, an entropy bonus of .01 and a linear schedule are RL Zoo's for
Atari (``hyperparams/ppo.yml`` of rl-baselines3-zoo); γ = 1, as for all. The learning rate, 1e-3, is the better of two
on Reverse with a seed that no figure uses: with 3e-4 it was solved later. SB3's defaults (2,048 states, batches of 64,
ten epochs, 3e-4) cost three times the CPU seconds. It knows no KL to a reference and no action masks.
"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from transformers import PreTrainedModel

from agents.config import Schedule, check_choice, scheduled
from agents.environments import TextVecEnv
from agents.policy import TextPolicy
from benchmarks import presets
from benchmarks.contender import CannotTakePart, Contender, Learned
from benchmarks.peers import LastToken
from benchmarks.setups import Setup
from benchmarks.warm_start import Start
from benchmarks.watch import Watch
from textgen_env import TextGenVectorEnv


class SB3PPO(Contender):
    """``stable_baselines3.PPO`` with ``MultiInputPolicy``."""

    name = "sb3_ppo"

    def options(self, setup: Setup) -> dict[str, Any]:
        """SB3's, ``num_envs`` and ``learning_rate_schedule``."""
        return presets.options(self.name, setup.task)

    def check(self, setup: Setup) -> None:
        """A reward that learns from our rollouts is not for others."""
        super().check(setup)
        refuse_trainer(self.name, setup)

    def learn(self, start: Start, watch: Watch) -> Learned:
        """``PPO.learn``, looked at between its rollouts."""
        agent = make_ppo(start, self.options(start.setup))
        look = _Look(watch, start.model())
        with watch:
            agent.learn(start.tokens, callback=look)
            watch.look(look.policy, agent.num_timesteps, look.episodes)
        return Learned(look.policy, agent.num_timesteps, look.episodes)


def refuse_trainer(name: str, setup: Setup) -> None:
    """Only our agents take part where the reward learns too.

    Raises:
        CannotTakePart: it does.
    """
    if setup.trainer is not None:
        raise CannotTakePart(f"{name} cannot learn {setup.task}: its reward learns from the rollouts of our agents")


def make_ppo(start: Start, options: dict[str, Any]) -> PPO:
    """SB3's PPO with the weights that all start from: its action layer begins as the language model's head."""
    options = dict(options)
    env = TextGenVectorEnv(options.pop("num_envs"), mdp=start.mdp, autoreset_mode=AutoresetMode.DISABLED)
    rate, schedule = options.pop("learning_rate"), options.pop("learning_rate_schedule")
    check_choice("learning_rate_schedule", schedule, Schedule)
    model: Any = start.model()
    agent = PPO(
        "MultiInputPolicy",
        TextVecEnv(env),
        # The last rollout runs over the total, where what SB3 says is left is below 0.
        learning_rate=lambda remaining: rate * scheduled(schedule, max(0.0, remaining)),
        policy_kwargs={
            "features_extractor_class": LastToken,
            "features_extractor_kwargs": {"config": model.config},
            "net_arch": [],
            "ortho_init": False,  # it would overwrite the transformer's weights
        },
        seed=start.seed,
        device="cpu",
        **options,
    )
    policy: Any = agent.policy
    with torch.no_grad():
        policy.features_extractor.transformer.load_state_dict(model.transformer.state_dict())
        policy.action_net.weight.copy_(model.lm_head.weight)
        policy.action_net.bias.zero_()
    return agent


def as_text_policy(policy: Any, shell: PreTrainedModel) -> TextPolicy:
    """What SB3's policy says, as the same causal language model again: ``shell`` gets its parts, which are shared."""
    model: Any = shell
    model.config.tie_word_embeddings = False  # SB3's action layer is no longer the embeddings
    model.transformer = policy.features_extractor.transformer
    model.lm_head = policy.action_net
    return TextPolicy(model, policy.action_net.out_features)


class _Look(BaseCallback):
    """Looks between rollouts, and counts episodes."""

    def __init__(self, watch: Watch, shell: PreTrainedModel) -> None:
        super().__init__()
        self.watch = watch
        self.shell = shell
        self.episodes = 0

    def _on_training_start(self) -> None:
        self.policy = as_text_policy(self.model.policy, self.shell)

    def _on_rollout_start(self) -> None:
        if self.watch.due(self.num_timesteps):
            self.watch.look(self.policy, self.num_timesteps, self.episodes)

    def _on_step(self) -> bool:
        self.episodes += int(self.locals["dones"].sum())
        return True
