"""Replay of whole episodes: a ring of the last ones, from which batches with a share of successes are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.trajectories import Trajectories

_KEPT = ("input_ids_BS", "prompt_lengths_B", "action_mask_BT", "rewards_BT", "bootstrap_values_B", "allowed_BTV")

SUCCESS_QUANTILE = 0.9


def successes(returns_N: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which episodes are worth repeating: those in the best tenth of the returns, and above the worst.

    Ties count as in the tenth, so that on a task with few distinct scores every perfect episode is a success. Where
    nine in ten have the worst return, as with a rare reward of 1, any better one is. Nothing is a success where all
    returns are equal. Scale and shift of the reward do not matter.

    Args:
        returns_N: undiscounted returns.
    """
    if not len(returns_N):
        return np.zeros(0, dtype=np.bool_)
    threshold = np.quantile(returns_N, SUCCESS_QUANTILE, method="higher")
    return (returns_N >= threshold) & (returns_N > returns_N.min())


class ReplayBuffer:
    """The last ``capacity`` episodes, and demonstrations, which are never overwritten.

    Kept on the CPU, padded to the longest episode seen: 8 bytes a token, 5 more an action, and where actions are
    masked a byte for each token of the vocabulary at each action. What was noted when an episode was sampled
    (log-probabilities, values, infos) is not kept.

    Args:
        capacity: the most episodes.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self.demonstrations: Trajectories | None = None
        self._rows: dict[str, Tensor] = {}
        self._size = self._next = 0
        self._successes: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self._size

    @property
    def success_rows(self) -> npt.NDArray[np.int64]:
        """The rows of the episodes that are `successes` among those in the buffer."""
        if self._successes is None:
            returns = self._rows["rewards_BT"][: self._size].double().sum(-1).numpy() if self._size else np.zeros(0)
            self._successes = np.flatnonzero(successes(returns))
        return self._successes

    def add(self, episodes: Trajectories) -> None:
        """Write episodes over the oldest ones.

        Raises:
            ValueError: some episodes come with action masks and others without.
        """
        episodes = episodes if len(episodes) <= self.capacity else episodes.select(range(-self.capacity, 0))
        count = len(episodes)
        new = _kept(episodes)
        if self._size and new.keys() != self._rows.keys():
            raise ValueError("an environment gives action masks always or never: empty the replay for another one")
        at = torch.arange(self._next, self._next + count) % self.capacity
        for name, value in new.items():
            rows = self._rows[name] if name in self._rows else value[:0]
            needed = max(self._size, min(self._next + count, self.capacity))
            allocated = len(rows) if needed <= len(rows) else min(self.capacity, max(needed, 2 * len(rows)))
            shape = (allocated, *map(max, rows.shape[1:], value.shape[1:]))
            if shape != rows.shape:
                rows = _widened(rows, shape)
            rows[at] = _widened(value, (count, *shape[1:]))
            self._rows[name] = rows
        self._next = (self._next + count) % self.capacity
        self._size = min(self._size + count, self.capacity)
        self._successes = None

    def sample(
        self,
        count: int,
        generator: np.random.Generator,
        *,
        success_share: float = 0.0,
        demonstration_share: float = 0.0,
    ) -> Trajectories:
        """Draw episodes, with replacement.

        Args:
            count: B, the number of episodes.
            generator: draws the rows.
            success_share: the part of them drawn from the successes alone, where there are any.
            demonstration_share: the part drawn from the demonstrations, where there are any.

        Raises:
            ValueError: the buffer is empty.
        """
        if not self._size:
            raise ValueError("the replay is empty: add episodes before drawing from it")
        shown = 0 if self.demonstrations is None else round(demonstration_share * count)
        again = round(success_share * count) if len(self.success_rows) else 0
        again = min(again, count - shown)
        rows = generator.integers(self._size, size=count - shown - again)
        if again:
            rows = np.concatenate([rows, generator.choice(self.success_rows, size=again)])
        drawn = _episodes({name: value[torch.from_numpy(rows)] for name, value in self._rows.items()})
        if self.demonstrations is None or not shown:
            return drawn.select(range(len(drawn)))
        examples = self.demonstrations.select(generator.integers(len(self.demonstrations), size=shown).tolist())
        return join([drawn, examples]) if len(drawn) else examples

    def state_dict(self) -> dict[str, Any]:
        """Everything in it, as tensors: what a saved agent needs to go on alike."""
        return {
            "rows": {name: value[: self._size] for name, value in self._rows.items()},
            "next": self._next,
            "demonstrations": None if self.demonstrations is None else _kept(self.demonstrations),
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: it holds more episodes than fit.
        """
        rows = {name: value.cpu() for name, value in state["rows"].items()}
        size = len(rows["prompt_lengths_B"]) if rows else 0
        if size > self.capacity:
            raise ValueError(f"{size} saved episodes do not fit into a replay of {self.capacity}")
        shown = state["demonstrations"]
        self._rows, self._size, self._next, self._successes = rows, size, state["next"], None
        self.demonstrations = None if shown is None else _episodes({name: v.cpu() for name, v in shown.items()})


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """Several sets of episodes as one, each episode a prompt group of its own; no infos.

    Where some have action masks and others not, everything was allowed in the others.
    """
    kept = [_kept(part) for part in parts]
    if any("allowed_BTV" in part for part in kept):
        vocab = next(part["allowed_BTV"].shape[-1] for part in kept if "allowed_BTV" in part)
        for part in kept:
            mask = part["action_mask_BT"]
            part.setdefault("allowed_BTV", torch.ones((*mask.shape, vocab), dtype=torch.bool))
    joined = {}
    for name in kept[0]:
        values = [part[name] for part in kept]
        shape = tuple(max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True))
        joined[name] = torch.cat([_widened(value, (len(value), *shape)) for value in values])
    return _episodes(joined)


def _kept(episodes: Trajectories) -> dict[str, Tensor]:
    tensors = {name: getattr(episodes, name) for name in _KEPT}
    return {name: value.cpu() for name, value in tensors.items() if value is not None}


def _episodes(tensors: Mapping[str, Tensor]) -> Trajectories:
    count, zeros_BT = len(tensors["prompt_lengths_B"]), torch.zeros_like(tensors["rewards_BT"])
    return Trajectories(
        **tensors,
        log_probs_BT=zeros_BT,
        values_BT=zeros_BT,
        prompt_groups_B=torch.arange(count),
        infos=({},) * count,
    )


def _widened(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor in the corner of a larger one of zeros."""
    if value.shape == shape:
        return value
    wide = value.new_zeros(shape)
    wide[tuple(slice(size) for size in value.shape)] = value
    return wide
