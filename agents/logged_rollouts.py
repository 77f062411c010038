"""Learning from logged episodes where other agents play: what ILQL and the supervised baseline have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.base import TextAlgorithm
from agents.trajectories import Trajectories


class FromLoggedEpisodes(TextAlgorithm):
    """Base of the algorithms whose rollouts are drawn from logged episodes.

    ``learn`` draws episodes where other agents play them: ``total_timesteps`` counts their tokens, and the figures of
    a rollout are those of the drawn episodes. The environment gives vocabulary and rules, and is for evaluating.

    Args:
        policy: the language model.
        env: the environment that the episodes are from.
        config: the options.
        data: the logged episodes (see `agents.logged`), or `set_data`. They are not saved with the agent.
        **kwargs: see `TextAlgorithm`.
    """

    data: Trajectories | None

    def __init__(
        self, policy: Any, env: Any, config: Any = None, *, data: Trajectories | None = None, **kwargs: Any
    ) -> None:
        self.data = None
        super().__init__(policy, env, config, **kwargs)
        if data is not None:
            self.set_data(data)

    def set_data(self, episodes: Trajectories) -> None:
        """Learn from these episodes from now on."""
        self.data = episodes

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "data"]

    def _check_first_rollout(self, trajectories: Trajectories) -> None:
        """Logged episodes have no sampler to compare with."""

    def collect_rollouts(self, callback: BaseCallback) -> Trajectories | None:
        """Draw logged episodes; None when a callback asked to stop.

        Raises:
            RuntimeError: there are none.
        """
        if self.data is None:
            raise RuntimeError(
                f"{type(self).__name__} learns from logged episodes: give data=, or call set_data "
                "(agents.logged.logged_episodes makes them of texts)"
            )
        callback.on_rollout_start()
        count = min(self.config.episodes_per_rollout, len(self.data))
        drawn = self.data.select(self.collector.shuffle.choice(len(self.data), size=count, replace=False).tolist())
        drawn = drawn.to(self.policy.device)
        self.num_timesteps += drawn.num_tokens
        self._note_episodes(drawn)
        callback.update_locals({"trajectories": drawn, "infos": drawn.infos, "dones": np.ones(count, dtype=np.bool_)})
        if self.world.any(not callback.on_step()):
            return None
        callback.on_rollout_end()
        return drawn
