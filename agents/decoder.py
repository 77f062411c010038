"""Token-by-token decoding through the slot cache: prompts in, next-token logits out, rows come and go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from agents.policy import TextPolicy
from agents.slot_cache import SlotCache, check_cacheable


class Decoder:
    """Token-by-token decoding of up to ``num_slots`` rows through a `SlotCache`.

    Running rows are packed at the front, so a step costs what its running rows cost. Each step feeds the last
    token of every row; the last token of a *prompt* is fed the same way, so a prefill needs no logits.

    Args:
        policy: the policy; it must not change while rows run.
        num_slots: the most rows at once.
        capacity: the most tokens a row (prompt and completion).
    """

    def __init__(self, policy: TextPolicy, num_slots: int, capacity: int) -> None:
        check_cacheable(policy.model, capacity)
        self.policy = policy
        self.cache = SlotCache(num_slots, capacity)
        self.num_rows = 0
        device = policy.device
        self._last_tokens = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._positions = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._host_positions = np.zeros(num_slots, dtype=np.int64)  # the same, known without asking the device
        self._columns = torch.arange(capacity, device=device)

    def clear(self) -> None:
        """Stop all rows."""
        self.num_rows = 0

    @torch.no_grad()
    def start(self, rows: list[int], prompts: list[Tensor]) -> None:
        """Give new prompts to some rows (each below, or just extending, ``num_rows``).

        Equal prompts (several samples of one) are prefilled once and copied.

        Args:
            rows: M row numbers.
            prompts: M int64 tensors of shape (P_i,), P_i >= 1.
        """
        device = self.policy.device
        first: dict[bytes, int] = {}
        unique: list[int] = []
        source: list[int] = []
        for index, prompt in enumerate(prompts):
            key = prompt.numpy().tobytes()
            if key not in first:
                first[key] = len(unique)
                unique.append(index)
            source.append(first[key])
        context = max(len(prompt) for prompt in prompts) - 1  # the last token is fed by the next step
        if context:
            ids = torch.zeros((len(unique), context), dtype=torch.long)
            for at, index in enumerate(unique):
                ids[at, : len(prompts[index]) - 1] = prompts[index][:-1]
            slots = torch.tensor([rows[index] for index in unique], device=device)
            self.cache.prefill(slots, context)
            positions = torch.arange(context, device=device).expand(len(unique), -1)
            self.policy(ids.to(device), positions, torch.zeros(0, dtype=torch.long, device=device), cache=self.cache)
            copies = [(rows[unique[at]], row) for row, at in zip(rows, source, strict=True) if rows[unique[at]] != row]
            if copies:
                sources, targets = torch.tensor(copies, device=device).T
                self.cache.copy_slots(sources, targets, context)
        where = torch.tensor(rows, device=device)
        self._last_tokens[where] = torch.stack([prompt[-1] for prompt in prompts]).to(device)
        self._host_positions[rows] = [len(prompt) - 1 for prompt in prompts]
        self._positions[where] = torch.from_numpy(self._host_positions[rows]).to(device)
        self.num_rows = max(self.num_rows, max(rows) + 1)

    @torch.no_grad()
    def step(self, allowed_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and values (N,) of the next token of the N running rows; −inf where it is not allowed."""
        count = self.num_rows
        positions = self._positions[:count]
        span = int(self._host_positions[:count].max()) + 1
        alike = int(self._host_positions[:count].min()) + 1 == span  # rows of one length see all there is
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
