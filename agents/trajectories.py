"""What a rollout hands on: B whole episodes as rectangular tensors with masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textgen_env import Completion


@dataclass(frozen=True)
class Trajectories:
    """B finished episodes; T is the longest completion and S the longest prompt plus completion, in tokens.

    Episodes stand in the order in which they were *started*. Entries outside the mask are 0.
    """

    input_ids_BS: Tensor
    """int64: the prompt, then the actions, padded on the right."""
    prompt_lengths_B: Tensor
    """int64: tokens of each prompt."""
    action_mask_BT: Tensor
    """bool: True where an action was taken, the EOS action included."""
    log_probs_BT: Tensor
    """float32: log π(action | prefix) when it was sampled, at the sampling temperature."""
    values_BT: Tensor
    """float32: V(prefix) when the action was sampled."""
    rewards_BT: Tensor
    """float32: the environment's reward of each action; a terminal reward stands on the last one."""
    bootstrap_values_B: Tensor
    """float32: V(last prefix) of an episode that a wrapper truncated, else 0."""
    prompt_groups_B: Tensor
    """int64: episodes with the same number answer the same prompt draw."""
    infos: tuple[dict[str, Any], ...]
    """The end-of-episode info of each episode: prompt, references, text, stop_reason, reward, completion."""
    allowed_BTV: Tensor | None = None
    """bool: True where an action was allowed; None where every action always was."""

    def __len__(self) -> int:
        return len(self.infos)

    @property
    def shape(self) -> tuple[int, int]:
        """B, and S."""
        return len(self.infos), self.input_ids_BS.shape[1]

    @property
    def lengths_B(self) -> Tensor:
        """int64: actions of each episode."""
        return self.action_mask_BT.sum(-1)

    @property
    def returns_B(self) -> Tensor:
        """float32: the undiscounted environment reward of each episode."""
        return self.rewards_BT.sum(-1)

    @property
    def num_tokens(self) -> int:
        """Actions taken in all episodes."""
        return int(self.action_mask_BT.sum())

    @property
    def completions(self) -> list[Completion]:
        """The completions, where the environment reports them."""
        return [info["completion"] for info in self.infos]

    def select(self, rows: Sequence[int] | Tensor) -> Trajectories:
        """Some of the episodes, trimmed to the longest of them."""
        rows = torch.as_tensor(rows)
        tensors = {
            field.name: value[rows.to(value.device)]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        steps = int(tensors["action_mask_BT"].sum(-1).max())
        length = int((tensors["prompt_lengths_B"] + tensors["action_mask_BT"].sum(-1)).max())
        for name in tensors:
            if name.endswith(("_BT", "_BTV")):
                tensors[name] = tensors[name][:, :steps]
        tensors["input_ids_BS"] = tensors["input_ids_BS"][:, :length]
        return Trajectories(**tensors, infos=tuple(self.infos[row] for row in rows.tolist()))

    def replace(self, **tensors: Tensor) -> Trajectories:
        """A copy with some fields exchanged."""
        return replace(self, **tensors)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Trajectories:
        """The same episodes with every tensor on ``device``."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return self.replace(**{name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)})

    def minibatches(self, count: int, generator: np.random.Generator) -> Iterator[Tensor]:
        """Shuffle the episodes into ``count`` sets of row numbers; episodes of one prompt stay together."""
        groups = int(self.prompt_groups_B.max()) + 1
        order = torch.from_numpy(generator.permutation(groups)).to(self.prompt_groups_B.device)
        for chosen in order.tensor_split(count):
            yield torch.isin(self.prompt_groups_B, chosen).nonzero().squeeze(-1).cpu()

    def micro_batches(self, max_tokens: int) -> Iterator[tuple[Tensor, Trajectories]]:
        """Split into forwards of at most ``max_tokens``, padding included; yields row numbers, and the episodes.

        Episodes of one prompt stay together where they fit (it is encoded once), and alike lengths go together:
        that keeps padding, and so wasted work, small. An episode longer than ``max_tokens`` goes alone.
        """
        totals = (self.prompt_lengths_B + self.lengths_B).tolist()
        groups: dict[int, list[int]] = {}
        for row, group in enumerate(self.prompt_groups_B.tolist()):
            groups.setdefault(group, []).append(row)
        most = max(1, max_tokens // max(totals))
        pieces = [rows[at : at + most] for rows in groups.values() for at in range(0, len(rows), most)]
        pieces.sort(key=lambda rows: max(totals[row] for row in rows), reverse=True)
        batch: list[int] = []
        for rows in pieces:
            width = max(totals[row] for row in (batch or rows))
            if batch and (len(batch) + len(rows)) * width > max_tokens:
                yield torch.tensor(batch), self.select(batch)
                batch = []
            batch = batch + rows
        yield torch.tensor(batch), self.select(batch)
