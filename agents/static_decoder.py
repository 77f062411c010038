"""Decoding in fixed shapes: every token step is the same work on the same memory, which a GPU replays as one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.cast_weights import CastWeights
from agents.cuda_graph import Graphs
from agents.decoder import Acted, Choice, Decoder, invert_cumulative
from agents.host_copy import HostCopy
from agents.policy import TextPolicy, chosen

_SHORTEST_SPAN = 64
_SHORTEST_PREFILL = 16


class StaticDecoder(Decoder):
    """A `Decoder` whose rows stay where they are: a row that ended idles until it is given the next prompt.

    A token step (forward, mask, draw, log-prob, value, and the token's place in what comes next) has shapes that
    depend on the number of slots and on the span of positions that attention reads alone, a power of two from 64 on.
    On CUDA each is captured once and then replayed: a launch costs the host one call, not hundreds, which is
    what bounds the decoding of small and middling models. A model that cannot be captured is run as it is, and a
    warning says so. Elsewhere the steps are simply run.

    In bf16 the matrices are cast once a rollout, and not at every step.

    Args:
        policy: the policy; it must not change while rows run.
        num_slots: rows at once.
        capacity: the most tokens a row (prompt and completion).
    """

    ahead: ClassVar[bool] = True

    def __init__(self, policy: TextPolicy, num_slots: int, capacity: int) -> None:
        self._weights = CastWeights(policy) if policy.precision == "bf16" else None
        super().__init__(policy if self._weights is None else self._weights.policy, num_slots, capacity)
        self.num_rows = num_slots
        self._running = np.zeros(num_slots, dtype=np.bool_)
        device = policy.device
        self._uniform_N1 = torch.zeros((num_slots, 1), dtype=torch.float64, device=device)
        self._allowed_NV = torch.ones((num_slots, policy.vocab_size), dtype=torch.bool, device=device)
        self._graphs = Graphs(device)
        self._token_steps: dict[tuple[int, bool, bool], Callable[[], tuple[Tensor, ...]]] = {}

    @property
    def slots(self) -> npt.NDArray[np.int64]:
        """The running rows."""
        return np.flatnonzero(self._running)

    def runs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of these rows are running."""
        return self._running[rows]

    def free_slots(self, count: int) -> list[int]:
        """Rows that `start` may be given next."""
        return [int(row) for row in np.flatnonzero(~self._running)[:count]]

    def clear(self) -> None:
        """Stop all rows, and read the policy's weights as they are now."""
        self._running[:] = False
        if self._weights is not None:
            self._weights.refresh()

    def start(self, rows: Sequence[int], prompts: Sequence[Tensor]) -> None:
        """Give new prompts to some rows."""
        super().start(rows, prompts)
        self._running[list(rows)] = True

    def step(self, allowed_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (num_slots, V) and values (num_slots,) of the next token; those of idle rows mean nothing."""
        return self._forward(self._span(), allowed_NV, alike=False)

    def act(
        self,
        generator: torch.Generator | None,
        allowed_NV: Tensor | None = None,
        choose: Choice | None = None,
        *,
        constrained: bool = False,
    ) -> Acted:
        """As `Decoder.act`, for all slots."""
        if choose is not None:
            return super().act(generator, allowed_NV, choose, constrained=constrained)
        if generator is not None:
            self._uniform_N1.uniform_(generator=generator)
        if allowed_NV is not None:
            self._allowed_NV.copy_(allowed_NV)
        key = (self._span(), generator is None, allowed_NV is not None)
        if key not in self._token_steps:
            self._token_steps[key] = self._graphs.captured(
                lambda: self._token_step(*key), state=(self._last_tokens, self._positions)
            )
        actions_N, log_probs_N, values_N = (found.clone() for found in self._token_steps[key]())
        self._host_positions += 1
        return Acted(actions_N, log_probs_N, values_N, HostCopy(actions_N), allowed_NV if constrained else None)

    def append(self, tokens_N: Tensor) -> None:
        """The tokens chosen; the next `step` feeds them."""
        self._advance(tokens_N)
        self._host_positions += 1

    def drop(self, row: int) -> None:
        """Stop a row."""
        self._running[row] = False

    def _prefills(self, contexts: list[tuple[int, Tensor]]) -> Iterator[tuple[int, list[tuple[int, Tensor]]]]:
        """Contexts of like lengths together, padded to a power of two: less is wasted, and few shapes occur."""
        buckets: dict[int, list[tuple[int, Tensor]]] = {}
        for row, context in contexts:
            width = max(_SHORTEST_PREFILL, 1 << (len(context) - 1).bit_length())
            buckets.setdefault(min(width, self.cache.capacity), []).append((row, context))
        yield from buckets.items()

    def _span(self) -> int:
        """Columns to read: those of the longest running row, rounded up so that few shapes occur."""
        longest = int(self._host_positions[self._running].max()) + 1
        return min(self.cache.capacity, max(_SHORTEST_SPAN, 1 << (longest - 1).bit_length()))

    def _token_step(self, span: int, greedy: bool, masked: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What is captured: everything between one token and the next, from and to memory that stays in place."""
        logits_NV, values_N = self._forward(span, self._allowed_NV if masked else None, alike=False)
        log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
        actions_N = logits_NV.argmax(-1) if greedy else invert_cumulative(log_probs_NV, self._uniform_N1)
        self._advance(actions_N)
        return actions_N, chosen(log_probs_NV, actions_N), values_N

    def _advance(self, tokens_N: Tensor) -> None:
        self._last_tokens.copy_(tokens_N)
        # An idle row goes on at the end of its slot, where no running row looks.
        self._positions.add_(1).clamp_(max=self.cache.capacity - 1)


def decoder_for(policy: TextPolicy, num_slots: int, capacity: int) -> Decoder:
    """The decoder that suits the policy's device: on a CPU a step costs what its running rows cost."""
    kind = StaticDecoder if policy.device.type == "cuda" else Decoder
    return kind(policy, num_slots, capacity)
