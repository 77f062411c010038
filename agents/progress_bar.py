"""A progress bar that counts tokens."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback
from tqdm.auto import tqdm


class TokenProgressBar(BaseCallback):
    """Tokens done, tokens a second, time left, and the last rollout's mean reward.

    SB3's own bar counts every row of every step; rows that wait for the end of a rollout would be counted as work.
    """

    def _on_training_start(self) -> None:
        assert self.model is not None
        total = self.model._total_timesteps
        self._bar = tqdm(
            desc="learn",
            total=total,
            initial=self.model.num_timesteps,
            unit="tok",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0,  # a mean: the pace within a rollout says nothing about the updates in between
        )

    def _on_step(self) -> bool:
        self._bar.update(self.num_timesteps - self._bar.n)
        return True

    def _on_rollout_end(self) -> None:
        trajectories = self.locals.get("trajectories")
        if trajectories is not None:
            self._bar.set_postfix(reward=f"{float(trajectories.returns_B.mean()):.3f}")

    def _on_training_end(self) -> None:
        self._bar.close()
