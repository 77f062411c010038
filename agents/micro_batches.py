"""Passes in parts that fit in memory: as many tokens a forward as were asked for, fewer once memory has run out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from agents.distributed import ALONE, World
from agents.memory import tokens_for
from agents.sharding import is_sharded

if TYPE_CHECKING:
    from agents.policy import TextPolicy

_LOG = logging.getLogger(__name__)


class Part(Protocol):
    """Some sequences."""

    @property
    def shape(self) -> tuple[int, int]:
        """How many, and the tokens of the longest."""


PartT = TypeVar("PartT", bound=Part)
PartT_co = TypeVar("PartT_co", bound=Part, covariant=True)


class Parts(Protocol[PartT_co]):
    """Sequences that can be parted: episodes (`Trajectories`), pairs, blocks of text."""

    def micro_batches(self, max_tokens: int) -> Iterator[tuple[Tensor, PartT_co]]:
        """Row numbers, and the part, of at most so many tokens, padding included; one sequence at least."""


class SizedConfig(Protocol):
    """An `AlgorithmConfig` or a `LoopConfig`."""

    micro_batch_tokens: int | None


def consecutive(shape: tuple[int, int], max_tokens: int) -> Iterator[Tensor]:
    """The row numbers of such a table in parts of at most so many places, or of one row.

    >>> [rows.tolist() for rows in consecutive((5, 10), 25)]
    [[0, 1], [2, 3], [4]]
    """
    count, width = shape
    yield from torch.arange(count).split(max(1, max_tokens // width))


class MicroBatches:
    """Goes through sequences in micro-batches; where one does not fit, begins again with smaller ones.

    Args:
        policy: what the micro-batches go through.
        config: where ``micro_batch_tokens`` stands; None there takes what the formula in `agents.memory` finds.
        world: the ranks that go through theirs at the same time.
    """

    def __init__(self, policy: TextPolicy, config: SizedConfig, world: World = ALONE) -> None:
        self._policy = policy
        self._config = config
        self._world = world
        self._found: int | None = None
        self._limit: int | None = None

    @property
    def tokens(self) -> int:
        """The most tokens of one forward now, padding included."""
        tokens = self._config.micro_batch_tokens
        if tokens is None:
            if self._found is None:
                self._found = tokens_for(self._policy)
            tokens = self._found
        return tokens if self._limit is None else min(tokens, self._limit)

    def each(
        self,
        sequences: Parts[PartT],
        work: Callable[[Tensor, PartT], None],
        *,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Do ``work(rows, part)`` on all micro-batches.

        Args:
            sequences: as a whole.
            work: gets the numbers of a micro-batch's rows, and its sequences. It may be called again for rows that it
                has had, after another ``begin``.
            begin: called before the first micro-batch, and again where all is begun anew.

        Raises:
            torch.OutOfMemoryError: a single sequence does not fit; or several do not, and the weights are in shards.
        """
        failed = self._first_that_fails(sequences, work, begin)
        while failed is not None:
            self._halve(failed)
            failed = self._first_that_fails(sequences, work, begin)

    def accumulate(
        self, sequences: Parts[PartT], loss: Callable[[Tensor, PartT], tuple[Tensor, Mapping[str, Tensor]]]
    ) -> dict[str, float]:
        """Add the policy's gradients of ``loss(rows, part)``, summed over all micro-batches.

        A backward pass that runs out of memory leaves the gradients of some weights: they are all taken back. With
        weights in shards a rank of fewer micro-batches adds passes of no weight, so that all ranks have as many.

        Returns:
            The sum of each of the figures that ``loss`` returns beside it.
        """
        parameters = [parameter for parameter in self._policy.parameters() if parameter.requires_grad]
        standing = [parameter.grad for parameter in parameters]
        sums: dict[str, Tensor] = {}

        def begin() -> None:
            sums.clear()
            for parameter in parameters:
                parameter.grad = None

        def learn(rows: Tensor, part: PartT) -> None:
            value, figures = loss(rows, part)
            value.backward()
            for name, figure in figures.items():
                sums[name] = sums[name] + figure.detach() if name in sums else figure.detach()

        idle = self._idle_passes(sequences)
        self.each(sequences, learn, begin=begin)
        for _ in range(idle):
            rows, part = next(sequences.micro_batches(1))
            (0.0 * loss(rows, part)[0]).backward()
        for parameter, before in zip(parameters, standing, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)
        return {name: float(value) for name, value in sums.items()}

    def _first_that_fails(
        self, sequences: Parts[PartT], work: Callable[[Tensor, PartT], None], begin: Callable[[], None]
    ) -> tuple[int, int] | None:
        """The shape of the micro-batch that runs out of memory; when this returns, the error holds no tensors."""
        begin()
        for rows, part in sequences.micro_batches(self.tokens):
            try:
                work(rows, part)
            except torch.OutOfMemoryError as error:
                if part.shape[0] == 1:
                    raise torch.OutOfMemoryError(self._does_not_fit(part.shape)) from error
                if is_sharded(self._policy):  # the other ranks wait for this one in the middle of a pass
                    raise torch.OutOfMemoryError(self._fails_in_shards(part.shape)) from error
                return part.shape
        return None

    def _idle_passes(self, sequences: Parts[PartT]) -> int:
        """What other ranks have more of: a pass puts sharded weights together, and nobody may be missing."""
        if not is_sharded(self._policy):
            return 0
        own = sum(1 for _ in sequences.micro_batches(self.tokens))
        return self._world.max(own) - own

    def _halve(self, failed: tuple[int, int]) -> None:
        count, length = failed
        self._limit = count * length // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _LOG.warning(
            "%d sequences of up to %d tokens did not fit in the memory of '%s': going on with micro_batch_tokens=%d",
            count,
            length,
            self._policy.device,
            self._limit,
        )

    def _fails_in_shards(self, failed: tuple[int, int]) -> str:
        count, length = failed
        return (
            f"{count} sequences of up to {length} tokens do not fit in the memory of '{self._policy.device}', and "
            f"with weights in shards no rank can begin again alone: set micro_batch_tokens={count * length // 2}"
        )

    def _does_not_fit(self, failed: tuple[int, int]) -> str:
        mends = ["shorter sequences (max_new_tokens, block_size)", "a LoRA adapter (lora_rank)"]
        if not self._policy.gradient_checkpointing:
            mends.insert(0, "gradient_checkpointing=True")
        if self._policy.precision != "bf16":
            mends.insert(0, "precision='bf16'")
        return (
            f"a single sequence of {failed[1]} tokens does not fit in the memory of '{self._policy.device}': "
            f"try {', '.join(mends[:-1])} or {mends[-1]}"
        )
