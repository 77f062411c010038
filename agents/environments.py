# ruff: noqa: D102 (the methods of VecEnv are documented there)
"""From whatever a user calls an environment to what the collector and SB3 each need."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from stable_baselines3.common.vec_env import VecEnv

from textgen_env import Reward, RewardError, TextGenEnv, TextGenVectorEnv


def as_vector_env(env: Any, num_envs: int, tokenizer: str | Path | None = None) -> VectorEnv:
    """A Gymnasium vector environment that leaves resets to the caller.

    Args:
        env: a registered id, a `TextGenEnv`, a `TextGenVectorEnv`, either of them wrapped, or a `TextVecEnv`.
        num_envs: rows, where ``env`` does not say.
        tokenizer: given to an environment that is made from an id (a model speaks its own tokenizer).

    Raises:
        TypeError: ``env`` is none of these.
    """
    if isinstance(env, str):
        kwargs: dict[str, Any] = {} if tokenizer is None else {"tokenizer": tokenizer}
        return gym.make_vec(env, num_envs=num_envs, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
    if isinstance(env, TextVecEnv):
        return env.vector_env
    if isinstance(env, TextGenVectorEnv):
        return TextGenVectorEnv(env.num_envs, mdp=env.mdp, autoreset_mode=AutoresetMode.DISABLED)
    if isinstance(env, VectorEnv):
        return env  # a wrapped one: the collector says so if its autoreset mode will not do
    if isinstance(env, gym.Env):
        inner = env
        while isinstance(inner, (OrderEnforcing, PassiveEnvChecker)):
            inner = inner.env
        if isinstance(inner, TextGenEnv):
            return TextGenVectorEnv(num_envs, mdp=inner.mdp, autoreset_mode=AutoresetMode.DISABLED)
        return SyncVectorEnv([lambda: env], autoreset_mode=AutoresetMode.DISABLED)  # a user's wrapper is honoured
    raise TypeError(
        f"env must be a registered id, a Gymnasium environment or vector environment, not {type(env).__name__}"
    )


class TextVecEnv(VecEnv):
    """A Gymnasium vector environment (autoreset disabled) in the shape of SB3's ``VecEnv``.

    SB3 resets within the step: the observation is the next episode's, the last one stands in
    ``info["terminal_observation"]``, and ``info["episode"]`` holds return, length and time.
    """

    def __init__(self, vector_env: VectorEnv) -> None:
        self.vector_env = vector_env
        self.render_mode = vector_env.render_mode
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)
        self._actions: npt.NDArray[Any] = np.zeros(0)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._start = time.time()

    def reset(self) -> Any:
        seeds: Any = self._seeds if any(seed is not None for seed in self._seeds) else None
        observations, _ = self.vector_env.reset(seed=seeds)
        self._reset_seeds()
        self._returns[:] = 0
        self._lengths[:] = 0
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._actions = np.asarray(actions)

    def step_wait(self) -> Any:
        observations, rewards, terminated, truncated, vector_infos = self.vector_env.step(self._actions)
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            for row in np.flatnonzero(dones):
                infos[row] = row_info(vector_infos, int(row))
                infos[row]["terminal_observation"] = {key: value[row].copy() for key, value in observations.items()}
                infos[row]["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
                infos[row]["episode"] = {
                    "r": float(self._returns[row]),
                    "l": int(self._lengths[row]),
                    "t": time.time() - self._start,
                }
            self._returns[dones] = 0
            self._lengths[dones] = 0
            observations, _ = self.vector_env.reset(options={"reset_mask": dones})
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        self.vector_env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        value = getattr(self.vector_env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.vector_env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [getattr(self.vector_env, method_name)(*args, **kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: int | Iterable[int] | None = None) -> list[bool]:
        from stable_baselines3.common.monitor import Monitor

        # Episode statistics are reported as a Monitor's would be: evaluate_policy must not warn that they lack.
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        return [None] * self.num_envs


def restore_reward(reward: Reward, state: dict[str, Any]) -> None:
    """Let a reward that adapts go on from what an agent saved of it; another reward starts afresh, with a warning."""
    try:
        reward.load_state(state)
    except RewardError as error:
        warnings.warn(
            f"the agent was saved with a reward that had adapted, which is not restored: {error}", stacklevel=2
        )


def row_info(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """Row ``row`` of a vector environment's info, as the single environment would have reported it."""
    return {
        key: row_info(value, row) if isinstance(value, dict) else value[row]
        for key, value in infos.items()
        if not key.startswith("_") and infos[f"_{key}"][row]
    }
