"""Many episodes at once: NumPy rows, one write a token, scores in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from textgen_env.mdp import TextMDP
from textgen_env.types import Completion, StopReason

Observations = dict[str, npt.NDArray[Any]]
BoolRows = npt.NDArray[np.bool_]


class TextGenVectorEnv(VectorEnv[Observations, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """``num_envs`` rows of the token MDP. Step for step it gives what ``SyncVectorEnv`` over `TextGenEnv` gives.

    All keyword arguments of `TextMDP` are accepted (or a ready one as ``mdp=``), and:

    Args:
        num_envs: number of rows.
        autoreset_mode: what happens to a row whose episode ended: NEXT_STEP (the default, as in
            ``SyncVectorEnv``), SAME_STEP or DISABLED (reset it with ``options={"reset_mask": bool[num_envs]}``).
            In DISABLED mode a row that ended and was not reset is idle: its actions are ignored, its reward is
            0, and it goes on to be reported as terminated.
        defer_scoring: the caller will score finished texts itself (``env.mdp.complete`` and ``score``), all in
            one batch; rewards stay 0 and the end of an episode only reports ``stop_reason``.
        seed: row i is seeded with ``seed + i`` where its first ``reset`` brings no seed.
        render_mode: "ansi" (``render`` returns one text a row) or "human" (each step prints them).

    ``reset(options={"prompt_index": i})`` chooses the prompts: one for all rows, or an array of shape (num_envs,).
    Where ``allowed_tokens`` constrains the actions, ``infos["action_mask"]`` (int8, shape (num_envs, V)) says which
    of them are allowed next, for the rows in ``infos["_action_mask"]``: those that go on or begin.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["ansi", "human"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        defer_scoring: bool = False,
        seed: int | None = None,
        render_mode: str | None = None,
        mdp: TextMDP | None = None,
        **mdp_kwargs: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be one of {self.metadata['render_modes']}, got {render_mode!r}")
        if "max_episode_steps" in mdp_kwargs:
            raise ValueError("the length cap is part of the MDP: pass max_new_tokens= instead of max_episode_steps=")
        if mdp is not None and mdp_kwargs:
            raise ValueError(f"mdp= was given, so {sorted(mdp_kwargs)} would be ignored: set them on the mdp")
        self.mdp = TextMDP(**mdp_kwargs) if mdp is None else mdp
        self.num_envs = num_envs
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        if defer_scoring and self.mdp.is_dense:
            raise ValueError("a dense reward is paid at every step: it cannot be deferred to the end")
        self.defer_scoring = defer_scoring
        self.render_mode = render_mode
        self.single_observation_space = self.mdp.observation_space
        self.single_action_space = self.mdp.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        length = self.mdp.max_prompt_tokens + self.mdp.max_new_tokens
        self._input_ids = np.full((num_envs, length), self.mdp.tokenizer.pad_id, dtype=np.int64)
        self._attention_mask = np.zeros((num_envs, length), dtype=np.int8)
        self._row_starts = np.arange(num_envs) * length  # where a row begins in the flattened arrays
        self._prompt_indices = np.zeros(num_envs, dtype=np.int64)
        self._prompt_lengths = np.zeros(num_envs, dtype=np.int64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._caps = np.zeros(num_envs, dtype=np.int64)  # the length at which a row is cut
        self._ended = np.ones(num_envs, dtype=np.bool_)
        self._started = False
        self._first_seed = seed
        self._generators: list[np.random.Generator | None] = [None] * num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start an episode in every row, or in the rows of ``options["reset_mask"]``.

        Raises:
            ValueError: an unknown option, a mask of the wrong shape or type, or a list of seeds of the wrong
                length.
        """
        self.mdp.check_prompt_options(options, ["prompt_index", "reset_mask"])
        options = options or {}
        rows = self._rows_of(options.get("reset_mask"))
        if seed is not None:
            seeds = [seed + row for row in range(self.num_envs)] if isinstance(seed, (int, np.integer)) else seed
            if len(seeds) != self.num_envs:
                raise ValueError(f"got {len(seeds)} seeds for num_envs={self.num_envs}")
            for row in rows:
                if seeds[row] is not None:
                    self._generators[row], _ = seeding.np_random(seeds[row])
        chosen = self._chosen(options.get("prompt_index"))
        infos: dict[str, Any] = {}
        for row in rows:
            self._reset_row(row, infos, None if chosen is None else int(chosen[row]))
        self._started = True
        return self._observations(), infos

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observations, npt.NDArray[np.float64], BoolRows, BoolRows, dict[str, Any]]:
        """Append one token to every running row.

        Raises:
            ValueError: the actions have the wrong shape, or one is no token id.
            RuntimeError: ``reset`` was never called.
        """
        if not self._started:
            raise RuntimeError("call reset() before the first step()")
        actions = self._checked(actions)
        if self._ended.any():
            return self._step_some(actions)
        at = self._row_starts + self._lengths
        self._input_ids.reshape(-1)[at] = actions
        self._attention_mask.reshape(-1)[at] = 1
        self._lengths += 1
        eos = self.mdp.is_eos_V[actions]
        return self._finish(eos, eos | (self._lengths == self._caps), np.zeros(0, dtype=np.int64))

    def _step_some(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observations, npt.NDArray[np.float64], BoolRows, BoolRows, dict[str, Any]]:
        """A step in which some rows had ended: they are restarted (NEXT_STEP) or left alone (DISABLED)."""
        over = np.flatnonzero(self._ended)
        running = ~self._ended
        rows = np.flatnonzero(running)
        self._input_ids[rows, self._lengths[rows]] = actions[rows]
        self._attention_mask[rows, self._lengths[rows]] = 1
        self._lengths[rows] += 1
        eos = running & self.mdp.is_eos_V[actions]
        ended = eos | (running & (self._lengths == self._caps))
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            return self._finish(eos, ended, over)
        return self._finish(eos, ended, np.zeros(0, dtype=np.int64), idle=self._ended)

    def _finish(
        self, eos: BoolRows, ended: BoolRows, restart: npt.NDArray[np.int64], idle: BoolRows | None = None
    ) -> tuple[Observations, npt.NDArray[np.float64], BoolRows, BoolRows, dict[str, Any]]:
        """Score what ended, restart what the mode says, and report."""
        rewards = np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        end_infos: dict[int, dict[str, Any]] = {}
        if self.mdp.is_dense or ended.any():
            end_infos = self._score(eos, ended, restart, idle, rewards)
        if self.mdp.allowed_tokens is not None:
            running = ~ended if idle is None else ~(ended | idle)
            running[restart] = False
            for row in np.flatnonzero(running).tolist():
                infos = self._add_info(infos, {"action_mask": self._action_mask(row)}, row)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            for row, info in end_infos.items():
                final_obs = {"input_ids": self._input_ids[row].copy()}
                final_obs["attention_mask"] = self._attention_mask[row].copy()
                infos = self._add_info(infos, {"final_obs": final_obs, "final_info": info}, row)
                self._reset_row(row, infos)
            self._ended = np.zeros_like(ended)
        else:
            for row, info in end_infos.items():
                infos = self._add_info(infos, info, row)
            self._ended = ended if idle is None else ended | idle
            for row in restart:
                self._reset_row(int(row), infos)
        if self.render_mode == "human":
            print("\n".join(self._texts()))
        terminated = ended if idle is None else ended | idle
        return self._observations(), rewards, terminated.copy(), np.zeros_like(ended), infos

    def _score(
        self,
        eos: BoolRows,
        ended: BoolRows,
        restart: npt.NDArray[np.int64],
        idle: BoolRows | None,
        rewards: npt.NDArray[np.float64],
    ) -> dict[int, dict[str, Any]]:
        """Write the rewards of this step; return the end-of-episode info of every row that ended."""
        if self.mdp.is_dense:
            asked = np.ones_like(ended) if idle is None else ~idle
            asked[restart] = False
        else:
            asked = ended
        rows = np.flatnonzero(asked)
        if self.defer_scoring:
            return {int(row): {"stop_reason": "eos" if eos[row] else "length"} for row in rows}
        completions = [self._completion(int(row), bool(eos[row]), bool(ended[row])) for row in rows]
        if not completions:
            return {}
        scores = self.mdp.score(completions)
        rewards[rows] = [r[-1] for r in scores.token_rewards] if self.mdp.is_dense else scores.totals
        return {
            int(row): self.mdp.end_info(completion, scores, i)
            for i, (row, completion) in enumerate(zip(rows, completions, strict=True))
            if ended[row]
        }

    def _completion(self, row: int, eos: bool, ended: bool) -> Completion:
        stop: StopReason | None = ("eos" if eos else "length") if ended else None
        return self.mdp.complete(int(self._prompt_indices[row]), self._actions(row), stop)

    def _actions(self, row: int) -> list[int]:
        actions: list[int] = self._input_ids[row, self._prompt_lengths[row] : self._lengths[row]].tolist()
        return actions

    def _action_mask(self, row: int) -> npt.NDArray[np.int8]:
        return self.mdp.action_mask(int(self._prompt_indices[row]), self._actions(row))

    def action_masks(self) -> BoolRows:
        """Shape (num_envs, V): True where an action is allowed now.

        All True in a row that waits for its reset (its next action is ignored), and where nothing is constrained.

        Raises:
            RuntimeError: ``reset`` was never called.
        """
        if not self._started:
            raise RuntimeError("call reset() before action_masks()")
        masks = np.ones((self.num_envs, self.mdp.tokenizer.vocab_size), dtype=np.bool_)
        if self.mdp.allowed_tokens is not None:
            for row in np.flatnonzero(~self._ended).tolist():
                masks[row] = self._action_mask(row)
        return masks

    def _reset_row(self, row: int, infos: dict[str, Any], index: int | None = None) -> None:
        if index is None:
            generator = self._generators[row]
            if generator is None:
                generator, _ = seeding.np_random(None if self._first_seed is None else self._first_seed + row)
                self._generators[row] = generator
            index = int(generator.integers(len(self.mdp.prompts)))
        ids = self.mdp.prompt_ids(index)
        self._input_ids[row] = self.mdp.tokenizer.pad_id
        self._attention_mask[row] = 0
        self._input_ids[row, : len(ids)] = ids
        self._attention_mask[row, : len(ids)] = 1
        self._prompt_indices[row] = index
        self._prompt_lengths[row] = self._lengths[row] = len(ids)
        self._caps[row] = len(ids) + self.mdp.max_new_tokens
        self._ended[row] = False
        self._add_info(infos, self.mdp.reset_info(index), row)

    def _rows_of(self, reset_mask: Any) -> list[int]:
        if reset_mask is None:
            return list(range(self.num_envs))
        if (
            not isinstance(reset_mask, np.ndarray)
            or reset_mask.shape != (self.num_envs,)
            or reset_mask.dtype != np.bool_
        ):
            raise ValueError(
                f"options['reset_mask'] must be a bool array of shape ({self.num_envs},), got {reset_mask!r}"
            )
        if not reset_mask.any():
            raise ValueError("options['reset_mask'] selects no row")
        return np.flatnonzero(reset_mask).tolist()

    def _chosen(self, prompt_index: Any) -> npt.NDArray[np.int64] | None:
        if prompt_index is None:
            return None
        chosen = np.asarray(prompt_index)
        if chosen.shape not in ((), (self.num_envs,)) or chosen.dtype.kind not in "iu":
            raise ValueError(
                f"options['prompt_index'] must be an integer or integers of shape ({self.num_envs},), "
                f"got {prompt_index!r}"
            )
        return np.broadcast_to(chosen, self.num_envs).astype(np.int64)

    def _checked(self, actions: Any) -> npt.NDArray[np.int64]:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be integers of shape ({self.num_envs},), got {actions.dtype} {actions.shape}"
            )
        actions = actions.astype(np.int64, copy=False)
        # A negative id is a huge unsigned one, so a single comparison bounds both ends.
        if int(actions.view(np.uint64).max()) >= self.mdp.tokenizer.vocab_size:
            bad = actions[(actions < 0) | (actions >= self.mdp.tokenizer.vocab_size)][0]
            raise ValueError(f"action {bad} is no token id in [0, {self.mdp.tokenizer.vocab_size})")
        return actions

    def render(self) -> tuple[str, ...] | None:
        """One text a row in "ansi" mode, else None."""
        return tuple(self._texts()) if self.render_mode == "ansi" else None

    def _texts(self) -> list[str]:
        texts = []
        for row in range(self.num_envs):
            prompt = self.mdp.prompts[int(self._prompt_indices[row])].text
            texts.append(f"{prompt} ▸ {self.mdp.tokenizer.decode(self._actions(row))}")
        return texts

    def _observations(self) -> Observations:
        return {"input_ids": self._input_ids.copy(), "attention_mask": self._attention_mask.copy()}
