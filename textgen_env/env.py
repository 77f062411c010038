"""One episode at a time: the plain Gymnasium environment."""

from __future__ import annotations

import operator
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from textgen_env.mdp import TextMDP
from textgen_env.types import StopReason

Observation = dict[str, npt.NDArray[Any]]


class TextGenEnv(gym.Env[Observation, np.int64]):
    """Text generation as a Gymnasium environment: each action appends a token to the prompt.

    All keyword arguments of `TextMDP` are accepted, and:

    Args:
        seed: seeds the prompt draws of the first ``reset`` that brings no seed of its own.
        render_mode: "ansi" (``render`` returns the text so far) or "human" (each step prints it).

    ``reset(options={"prompt_index": i})`` chooses the prompt. ``info`` holds the prompt at ``reset`` and, at
    the end of an episode, ``text``, ``stop_reason`` ("eos" or "length") and every component of the reward.
    Where ``allowed_tokens`` constrains the actions, ``info["action_mask"]`` (int8, shape (V,)) says which of them
    are allowed next, after ``reset`` and every step but the last. ``step`` takes the others all the same.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "human"], "render_fps": 4}  # type: ignore[misc]

    def __init__(self, *, seed: int | None = None, render_mode: str | None = None, **mdp_kwargs: Any) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be one of {self.metadata['render_modes']}, got {render_mode!r}")
        self.mdp = TextMDP(**mdp_kwargs)
        self.observation_space = self.mdp.observation_space
        self.action_space = self.mdp.action_space
        self.render_mode = render_mode
        self._first_seed = seed
        length = self.mdp.max_prompt_tokens + self.mdp.max_new_tokens
        self._input_ids = np.full(length, self.mdp.tokenizer.pad_id, dtype=np.int64)
        self._attention_mask = np.zeros(length, dtype=np.int8)
        self._prompt_index = 0
        self._prompt_length = 0
        self._length = 0
        self._ended = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode with a drawn prompt, or with ``options["prompt_index"]``."""
        if seed is None:
            seed = self._first_seed
        self._first_seed = None
        super().reset(seed=seed)
        self.mdp.check_prompt_options(options, ["prompt_index"])
        chosen = (options or {}).get("prompt_index")
        index = int(self.np_random.integers(len(self.mdp.prompts))) if chosen is None else operator.index(chosen)
        ids = self.mdp.prompt_ids(index)
        self._input_ids[:] = self.mdp.tokenizer.pad_id
        self._attention_mask[:] = 0
        self._input_ids[: len(ids)] = ids
        self._attention_mask[: len(ids)] = 1
        self._prompt_index = index
        self._prompt_length = self._length = len(ids)
        self._ended = False
        if self.render_mode == "human":
            print(self._text())
        return self._observation(), self.mdp.reset_info(index)

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append a token. The reward arrives at the end, or at every step where the reward is dense.

        Raises:
            ValueError: the action is no token id.
            RuntimeError: the episode is over, or none was started.
        """
        if self._ended:
            raise RuntimeError("the episode is over: call reset() before the next step()")
        try:
            token = operator.index(action)
        except TypeError:
            raise ValueError(f"action {action!r} is no integer") from None
        if not 0 <= token < self.mdp.tokenizer.vocab_size:
            raise ValueError(f"action {token} is no token id in [0, {self.mdp.tokenizer.vocab_size})")
        self._input_ids[self._length] = token
        self._attention_mask[self._length] = 1
        self._length += 1

        stop: StopReason | None = None
        if self.mdp.is_eos_V[token]:
            stop = "eos"
        elif self._length - self._prompt_length == self.mdp.max_new_tokens:
            stop = "length"
        reward, info = 0.0, {}
        if stop or self.mdp.is_dense:
            actions = self._input_ids[self._prompt_length : self._length]
            completion = self.mdp.complete(self._prompt_index, actions.tolist(), stop)
            scores = self.mdp.score([completion])
            reward = float(scores.token_rewards[0][-1] if self.mdp.is_dense else scores.totals[0])
            if stop:
                info = self.mdp.end_info(completion, scores, 0)
        if not stop and self.mdp.allowed_tokens is not None:
            info = {"action_mask": self._action_mask()}
        self._ended = stop is not None
        if self.render_mode == "human":
            print(self._text())
        return self._observation(), reward, self._ended, False, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Shape (V,): True where an action is allowed now; all True where nothing is constrained.

        The method that sb3-contrib's MaskablePPO asks.

        Raises:
            RuntimeError: the episode is over, or none was started.
        """
        if self._ended:
            raise RuntimeError("no episode is running: call reset() before action_masks()")
        return self._action_mask().astype(np.bool_)

    def _action_mask(self) -> npt.NDArray[np.int8]:
        return self.mdp.action_mask(self._prompt_index, self._input_ids[self._prompt_length : self._length].tolist())

    def render(self) -> str | None:
        """The prompt and the completion so far ("ansi"); None in "human" mode, where steps print."""
        if self.render_mode is None:
            gym.logger.warn("render() needs a render mode: gym.make(..., render_mode='ansi')")
        return self._text() if self.render_mode == "ansi" else None

    def _text(self) -> str:
        actions = self._input_ids[self._prompt_length : self._length].tolist()
        return f"{self.mdp.prompts[self._prompt_index].text} ▸ {self.mdp.tokenizer.decode(actions)}"

    def _observation(self) -> Observation:
        return {"input_ids": self._input_ids.copy(), "attention_mask": self._attention_mask.copy()}
