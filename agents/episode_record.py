"""A rollout as it grows: what every episode was asked, did, earned, and was allowed to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.decoder import Acted
from agents.policy import TextPolicy
from agents.trajectories import Trajectories


class AllowedActions:
    """The environment's action masks, a row an environment; unknown where it gives none."""

    def __init__(self, num_envs: int, policy: TextPolicy) -> None:
        self._shape = (num_envs, policy.vocab_size)
        self._device = policy.device
        self._rows: npt.NDArray[np.bool_] | None = None

    @property
    def known(self) -> bool:
        """Whether the environment has given any."""
        return self._rows is not None

    def note(self, infos: dict[str, Any], rows: npt.NDArray[np.bool_]) -> None:
        """Keep the masks that a reset or a step of some rows reported; those that reported none are free."""
        if self._rows is None:
            if "action_mask" not in infos:
                return
            self._rows = np.ones(self._shape, dtype=np.bool_)
        self._rows[rows] = True
        if "action_mask" in infos:
            reported = infos["_action_mask"]
            self._rows[reported] = np.stack(infos["action_mask"][reported]).astype(np.bool_)

    def of(self, env_rows: npt.NDArray[np.int64]) -> Tensor | None:
        """The masks (N, V) of some rows, on the policy's device."""
        return None if self._rows is None else torch.from_numpy(self._rows[env_rows]).to(self._device)


class EpisodeRecord:
    """The rollout as it grows: one row an episode, written a column a step."""

    def __init__(self, episodes: int, capacity: int) -> None:
        self.actions = np.zeros((episodes, capacity), dtype=np.int64)
        self.rewards = np.zeros((episodes, capacity))
        self.lengths = np.zeros(episodes, dtype=np.int64)
        self.prompts: list[Tensor] = [torch.zeros(0, dtype=torch.long)] * episodes
        self.infos: list[dict[str, Any]] = [{}] * episodes
        self.truncated = np.zeros(episodes, dtype=np.bool_)
        self._steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], Acted]] = []

    def start(self, episodes: npt.NDArray[np.int64], prompt_ids: list[Tensor]) -> None:
        """Some episodes begin."""
        for episode, ids in zip(episodes, prompt_ids, strict=True):
            self.prompts[episode] = ids

    def step(
        self,
        episodes: npt.NDArray[np.int64],
        slots: npt.NDArray[np.int64],
        acted: Acted,
        actions: npt.NDArray[np.int64],
        rewards: npt.NDArray[np.float64],
    ) -> None:
        """One token of some episodes, (M,) each; ``slots`` are their rows in ``acted``, which stays on the device."""
        at = self.lengths[episodes]
        self.actions[episodes, at] = actions
        self.rewards[episodes, at] = rewards
        self._steps.append((episodes, at, slots, acted))
        self.lengths[episodes] += 1

    def end(self, episode: int, info: dict[str, Any], truncated: bool) -> None:
        """An episode has ended, or was cut short by a wrapper."""
        token_rewards = info.get("token_rewards")
        # Known only now and paid as a sum: put every token's share where it belongs, unless a wrapper paid otherwise.
        if token_rewards is not None and np.isclose(sum(token_rewards), self.rewards[episode].sum()):
            self.rewards[episode, : self.lengths[episode]] = token_rewards
        self.infos[episode] = info
        self.truncated[episode] = truncated

    def trajectories(self, device: torch.device, samples_per_prompt: int) -> Trajectories:
        """All of it, on the device."""
        count, steps = len(self.lengths), int(self.lengths.max())
        prompt_lengths = np.array([len(ids) for ids in self.prompts])
        input_ids = torch.zeros((count, int((prompt_lengths + self.lengths).max())), dtype=torch.long)
        for episode, ids in enumerate(self.prompts):
            length = int(self.lengths[episode])
            input_ids[episode, : len(ids)] = ids
            input_ids[episode, len(ids) : len(ids) + length] = torch.from_numpy(self.actions[episode, :length])
        steps_of = [acted for *_, acted in self._steps]
        begins = np.cumsum([0, *(len(acted.actions_N) for acted in steps_of)])
        rows = torch.from_numpy(np.concatenate([episodes for episodes, *_ in self._steps])).to(device)
        columns = torch.from_numpy(np.concatenate([at for _, at, *_ in self._steps])).to(device)
        found = np.concatenate([begin + slots for begin, (_, _, slots, _) in zip(begins, self._steps, strict=False)])
        log_probs = torch.cat([acted.log_probs_N for acted in steps_of])[torch.from_numpy(found).to(device)]
        values = torch.cat([acted.values_N for acted in steps_of])[torch.from_numpy(found).to(device)]
        allowed_BTV = None
        # Of the first steps they may be missing: an environment is known to constrain once it does.
        masks = [acted.allowed_NV[slots] for _, _, slots, acted in self._steps if acted.allowed_NV is not None]
        if masks:
            known = sum(len(mask) for mask in masks)
            allowed_BTV = torch.ones((count, steps, masks[0].shape[-1]), dtype=torch.bool, device=device)
            allowed_BTV[rows[-known:], columns[-known:]] = torch.cat(masks)

        def place(flat: Tensor) -> Tensor:
            return flat.new_zeros((count, steps)).index_put((rows, columns), flat)

        lengths = torch.from_numpy(self.lengths)
        return Trajectories(
            input_ids_BS=input_ids.to(device),
            prompt_lengths_B=torch.from_numpy(prompt_lengths).to(device),
            action_mask_BT=(torch.arange(steps) < lengths[:, None]).to(device),
            log_probs_BT=place(log_probs),
            values_BT=place(values),
            rewards_BT=torch.from_numpy(self.rewards[:, :steps]).to(device, values.dtype),
            bootstrap_values_B=values.new_zeros(count),
            prompt_groups_B=(torch.arange(count) // samples_per_prompt).to(device),
            infos=tuple(self.infos),
            allowed_BTV=allowed_BTV,
        )
