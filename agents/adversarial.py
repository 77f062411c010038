"""Training against a discriminator: the policy and its learned reward in turns, by one callback on any agent.

A rollout is scored by the discriminator as it stands, which has never seen these samples. At the rollout's end it
learns to tell them from the corpus; then the policy learns from the scores. The agent's own KL to its reference, the
supervised model, holds the policy where the discriminator knows its way (GAN training on text is brittle: Caccia et
al. 2020 found most published ones below a supervised model at a lower temperature, the control to beat).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.evaluation import collector_on
from agents.trajectories import Trajectories
from reward_models.discriminator import Discriminator, Tokens
from textgen_env import TextMDP


class DiscriminatorCallback(BaseCallback):
    """Trains a `Discriminator`, which is the environment's reward, in turns with the agent.

    The corpus is the references of the environment's split. Each sample of the policy is set against a reference of
    the same prompt, so that there is nothing to learn from prompts alone.

    It keeps nothing itself. ``agent.save`` writes the discriminator too, with its optimiser and its replay; loaded into
    an environment whose reward is a discriminator of the same shape, with a callback of the same options, the agent
    goes on as if it had never stopped.

    Args:
        discriminator: the reward of the agent's environment, or a part of it.
        steps: optimiser steps after each rollout.
        warmup_steps: optimiser steps before the first rollout, on samples of the policy as it is then; none where
            the discriminator has learned already.
        warmup_episodes: samples they are taken from.
        seed: seeds the choice of references and the samples of the warm-up.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        *,
        steps: int = 4,
        warmup_steps: int = 200,
        warmup_episodes: int = 2048,
        seed: int = 0,
    ) -> None:
        if steps < 1 or warmup_steps < 0 or warmup_episodes < 1:
            counts = f"steps={steps}, warmup_steps={warmup_steps}, warmup_episodes={warmup_episodes}"
            raise ValueError(f"{counts}: steps and warmup_episodes must be at least 1, warmup_steps at least 0")
        super().__init__()
        self.discriminator = discriminator
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.warmup_episodes = warmup_episodes
        self.seed = seed

    def _on_training_start(self) -> None:
        agent: Any = self.model
        mdp = agent._mdp
        if mdp is None:
            raise ValueError("the environment is not one of ours: its prompts and references are not known")
        self._corpus = corpus(mdp)
        if self.warmup_steps and not self.discriminator.steps:
            played = collector_on(agent, mdp, self.warmup_episodes, self.seed).collect(self.warmup_episodes)
            assert played is not None  # nobody abandons it
            self._fit(played, self.warmup_steps)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._scored = self.discriminator.scored

    def _on_rollout_end(self) -> None:
        if self.discriminator.scored == self._scored:
            raise ValueError(
                f"'{self.discriminator.name}' scored none of the rollout's texts: it is not the environment's reward; "
                "make the environment with reward=discriminator, or with a sum that it is part of"
            )
        for name, value in self._fit(self.locals["trajectories"], self.steps).items():
            self.logger.record(f"discriminator/{name}", value)
        self.logger.record("discriminator/centre", self.discriminator.centre)
        self.logger.record("discriminator/replay", len(self.discriminator.replay))

    def _fit(self, played: Trajectories, steps: int) -> dict[str, float]:
        prompts = [info["prompt_index"] for info in played.infos]
        # From the steps so far: a resumed run, which knows them, draws what an uninterrupted one does.
        rng = np.random.default_rng([self.seed, self.discriminator.steps])
        real = [self._corpus[prompt][rng.integers(len(self._corpus[prompt]))] for prompt in prompts]
        fake = [(self._corpus[p][0][0], c.token_ids) for p, c in zip(prompts, played.completions, strict=True)]
        return self.discriminator.fit(real, fake, steps)


def corpus(mdp: TextMDP) -> list[list[Tokens]]:
    """For each prompt of the split, its references as (prompt, completion) tokens, cut as an episode would be.

    Raises:
        ValueError: a prompt has no references.
    """
    texts: list[list[Tokens]] = []
    for index, prompt in enumerate(mdp.prompts):
        if not prompt.references:
            raise ValueError(f"prompt {prompt.text!r} has no references: there is nothing real to compare with")
        encoded = (mdp.tokenizer.encode_completion(prompt.text, reference) for reference in prompt.references)
        prompt_ids = mdp.prompt_ids(index).tolist()
        texts.append([(prompt_ids, ids[: mdp.max_new_tokens].tolist()) for ids in encoded])
    return texts
