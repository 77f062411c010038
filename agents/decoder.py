"""Token-by-token decoding through the slot cache: prompts in, next-token logits out, rows come and go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.host_copy import HostCopy
from agents.policy import TextPolicy, chosen
from agents.slot_cache import SlotCache, check_cacheable

Choice = Callable[[Tensor], Tensor]
"""Chooses actions (N,) from logits (N, V), −inf where forbidden."""


@dataclass(frozen=True)
class Acted:
    """What one step of the decoder's N rows came to. Of all this the actions alone go to the host."""

    actions_N: Tensor
    log_probs_N: Tensor
    values_N: Tensor
    host_actions: HostCopy
    allowed_NV: Tensor | None = None
    """Which actions had a probability, where that was asked for."""


_BLOCK = 256
"""Tokens."""
_FEW_TOKENS = 4096
"""In a vocabulary: a larger one is sampled by blocks."""


def sample_actions(log_probs_NV: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each row's distribution, shape (N,)."""
    rows, device = len(log_probs_NV), log_probs_NV.device
    return invert_cumulative(
        log_probs_NV, torch.rand((rows, 1), generator=generator, dtype=torch.float64, device=device)
    )


def invert_cumulative(log_probs_NV: Tensor, uniform_N1: Tensor) -> Tensor:
    """The token of each row at which its cumulative distribution passes a number of [0, 1), shape (N,).

    In float64, with one uniform a row: a token of probability 0 is never drawn, and the cost is one pass. Of a large
    vocabulary only sums over blocks, and then the one block, are accumulated: the float64 copy of all of it would
    take several times as long as reading it.
    """
    probs_NV, vocab_size = log_probs_NV.exp(), log_probs_NV.shape[-1]
    if vocab_size <= _FEW_TOKENS:
        return _search(probs_NV, uniform_N1)[0].squeeze(-1)
    whole = vocab_size - vocab_size % _BLOCK
    sums_NK = probs_NV[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1, dtype=torch.float64)
    if whole < vocab_size:
        sums_NK = torch.cat([sums_NK, probs_NV[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], dim=-1)
    block_N1, passed_NK, share_N1 = _search(sums_NK, uniform_N1)
    sum_N1, passed_N1 = sums_NK.gather(-1, block_N1), passed_NK.gather(-1, block_N1)
    tokens_NB = block_N1 * _BLOCK + torch.arange(_BLOCK, device=probs_NV.device)
    probs_NB = probs_NV.gather(-1, tokens_NB.clamp(max=vocab_size - 1)).masked_fill(tokens_NB >= vocab_size, 0.0)
    place_N1, _, _ = _search(probs_NB, ((share_N1 - passed_N1 + sum_N1) / sum_N1).clamp(0, 1))
    return (block_N1 * _BLOCK + place_N1).squeeze(-1).clamp(max=vocab_size - 1)


def _search(weights_NK: Tensor, uniform_N1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the cumulative weights pass a share of their total, (N, 1), they themselves, (N, K), and the share, (N, 1).

    A weight of 0 is never the place. Weights that are not numbers give the last one: an index beyond it would end a
    CUDA process, and the rollout sees that the log-probability is no number.
    """
    cumulative_NK = weights_NK.cumsum(-1, dtype=torch.float64)
    share_N1 = uniform_N1 * (cumulative_NK[:, -1:] * (1 - 2**-52))
    place_N1 = torch.searchsorted(cumulative_NK, share_N1, right=True).clamp_(max=weights_NK.shape[-1] - 1)
    return place_N1, cumulative_NK, share_N1


class Decoder:
    """Token-by-token decoding of up to ``num_slots`` rows through a `SlotCache`.

    Running rows are packed at the front, so a step costs what its running rows cost. Each step feeds the last
    token of every row; the last token of a *prompt* is fed the same way, so a prefill needs no logits.

    Args:
        policy: the policy; it must not change while rows run.
        num_slots: the most rows at once.
        capacity: the most tokens a row (prompt and completion).
    """

    ahead: ClassVar[bool] = False
    """Whether a step may be asked for before it is known which rows the last one ended."""

    def __init__(self, policy: TextPolicy, num_slots: int, capacity: int) -> None:
        check_cacheable(policy.model, capacity)
        self.policy = policy
        self.num_slots = num_slots
        self.cache = SlotCache(num_slots, capacity)
        self.num_rows = 0
        device = policy.device
        self._last_tokens = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._positions = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._host_positions = np.zeros(num_slots, dtype=np.int64)  # the same, known without asking the device
        self._columns = torch.arange(capacity, device=device)

    @property
    def slots(self) -> npt.NDArray[np.int64]:
        """The running rows."""
        return np.arange(self.num_rows)

    def runs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these rows are running."""
        return rows < self.num_rows

    def free_slots(self, count: int) -> list[int]:
        """Rows that `start` may be given next."""
        return list(range(self.num_rows, self.num_rows + count))

    def clear(self) -> None:
        """Stop all rows."""
        self.num_rows = 0

    @torch.no_grad()
    def start(self, rows: Sequence[int], prompts: Sequence[Tensor]) -> None:
        """Give new prompts to some rows (each below, or just extending, ``num_rows``).

        Equal prompts (several samples of one) are prefilled once and copied.

        Args:
            rows: M row numbers.
            prompts: M int64 tensors of shape (P_i,), P_i >= 1.
        """
        device = self.policy.device
        first: dict[bytes, int] = {}  # prompt -> the row that reads it
        contexts: list[tuple[int, Tensor]] = []
        copies: list[tuple[int, int]] = []
        for row, prompt in zip(rows, prompts, strict=True):
            source = first.setdefault(prompt.numpy().tobytes(), row)
            if len(prompt) == 1:  # the last token is fed by the next step
                continue
            if source == row:
                contexts.append((row, prompt[:-1]))
            else:
                copies.append((source, row))
        for width, group in self._prefills(contexts):
            self._prefill(width, group)
        if copies:
            sources, targets = torch.tensor(copies, device=device).T
            self.cache.copy_slots(sources, targets, max(len(context) for _, context in contexts))
        where = torch.tensor(rows, device=device)
        self._last_tokens[where] = torch.stack([prompt[-1] for prompt in prompts]).to(device)
        self._host_positions[list(rows)] = [len(prompt) - 1 for prompt in prompts]
        self._positions[where] = torch.from_numpy(self._host_positions[list(rows)]).to(device)
        self.num_rows = max(self.num_rows, max(rows) + 1)

    def _prefills(self, contexts: list[tuple[int, Tensor]]) -> Iterator[tuple[int, list[tuple[int, Tensor]]]]:
        """What is read in one forward: its width, and the rows with their tokens. All at once, by default."""
        if contexts:
            yield max(len(context) for _, context in contexts), contexts

    def _prefill(self, width: int, group: list[tuple[int, Tensor]]) -> None:
        device = self.policy.device
        ids = torch.zeros((len(group), width), dtype=torch.long)
        for at, (_, context) in enumerate(group):
            ids[at, : len(context)] = context
        self.cache.prefill(torch.tensor([row for row, _ in group], device=device), width)
        positions = torch.arange(width, device=device).expand(len(group), -1)
        self.policy(ids.to(device), positions, torch.zeros(0, dtype=torch.long, device=device), cache=self.cache)

    @torch.no_grad()
    def step(self, allowed_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and values (N,) of the next token of the N running rows; −inf where it is not allowed."""
        positions = self._host_positions[: self.num_rows]
        span = int(positions.max()) + 1
        return self._forward(span, allowed_NV, alike=int(positions.min()) + 1 == span)

    @torch.no_grad()
    def act(
        self,
        generator: torch.Generator | None,
        allowed_NV: Tensor | None = None,
        choose: Choice | None = None,
        *,
        constrained: bool = False,
    ) -> Acted:
        """One token of every running row: `step`, a choice, and `append`.

        Args:
            generator: draws the tokens; None takes the most likely ones.
            allowed_NV: as for `step`.
            choose: chooses instead.
            constrained: report which actions were allowed.
        """
        logits_NV, values_N = self.step(allowed_NV)
        log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
        if choose is not None:
            actions_N = choose(logits_NV)
        else:
            actions_N = logits_NV.argmax(-1) if generator is None else sample_actions(log_probs_NV, generator)
        self.append(actions_N)
        return Acted(
            actions_N,
            chosen(log_probs_NV, actions_N),
            values_N,
            HostCopy(actions_N),
            (logits_NV > -torch.inf) if constrained else None,
        )

    def _forward(self, span: int, allowed_NV: Tensor | None, *, alike: bool) -> tuple[Tensor, Tensor]:
        """A step of all rows, none of which stands beyond ``span``; ``alike`` if all stand at its end."""
        count = self.num_rows
        positions = self._positions[:count]
        # Rows of one length see all there is.
        mask = None if alike else (self._columns[:span] <= positions[:, None])[:, None, None, :]
        self.cache.decode(positions, span, alike=alike)
        logits_NV, values_N = self.policy(
            self._last_tokens[:count, None],
            positions[:, None],
            torch.arange(count, device=positions.device),
            attention_mask=mask,
            cache=self.cache,
        )
        return logits_NV if allowed_NV is None else logits_NV.masked_fill(~allowed_NV, -torch.inf), values_N

    def append(self, tokens_N: Tensor) -> None:
        """The tokens chosen for the running rows; the next `step` feeds them."""
        self._last_tokens[: self.num_rows] = tokens_N
        self._positions[: self.num_rows] += 1
        self._host_positions[: self.num_rows] += 1

    def drop(self, row: int) -> int | None:
        """Stop a row. The last running row moves into its place; returns that row's old number, None if none moved."""
        last = self.num_rows - 1
        if row != last:
            pair = torch.tensor([last, row], device=self._positions.device)
            self.cache.copy_slots(pair[:1], pair[1:], int(self._host_positions[last]) + 1)
            self._last_tokens[row] = self._last_tokens[last]
            self._positions[row] = self._positions[last]
            self._host_positions[row] = self._host_positions[last]
        self.num_rows = last
        return None if row == last else last


@contextlib.contextmanager
def decoding(policy: TextPolicy) -> Iterator[None]:
    """No gradients, and in bf16 every weight cast once for the whole rollout."""
    with torch.no_grad(), policy.autocast():
        yield
