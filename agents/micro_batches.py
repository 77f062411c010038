"""Updates in parts that fit in memory: as many tokens a forward as were asked for, fewer once memory has run out."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agents.memory import tokens_for
from agents.sharding import is_sharded
from agents.trajectories import Trajectories

if TYPE_CHECKING:
    from agents.config import AlgorithmConfig
    from agents.policy import TextPolicy

_LOG = logging.getLogger(__name__)


class MicroBatches:
    """Goes through episodes in micro-batches; where one does not fit, begins again with smaller ones.

    What was asked for is ``micro_batch_tokens``; without it, what the formula in `agents.memory` finds.

    Args:
        policy: what the micro-batches go through.
        config: of the agent, where ``micro_batch_tokens`` stands.
    """

    def __init__(self, policy: TextPolicy, config: AlgorithmConfig) -> None:
        self._policy = policy
        self._config = config
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
        episodes: Trajectories,
        work: Callable[[Tensor, Trajectories], None],
        *,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Do ``work(rows, part)`` on all micro-batches.

        Args:
            episodes: as a whole.
            work: gets the numbers of a micro-batch's rows, and its episodes. It may be called again for rows that it
                has had, after another ``begin``.
            begin: called before the first micro-batch, and again where all is begun anew.

        Raises:
            torch.OutOfMemoryError: a single episode does not fit; or several do not, and the weights are in shards.
        """
        failed: Trajectories | None = episodes
        while failed is not None:
            begin()
            failed = self._first_that_fails(episodes, work)
            if failed is not None:
                self._halve(failed)

    def accumulate(
        self, episodes: Trajectories, loss: Callable[[Tensor, Trajectories], tuple[Tensor, Mapping[str, Tensor]]]
    ) -> dict[str, float]:
        """Add the policy's gradients of ``loss(rows, part)``, summed over all micro-batches.

        A backward pass that runs out of memory leaves the gradients of some weights: they are all taken back.

        Returns:
            The sum of each of the figures that ``loss`` returns beside it.
        """
        parameters = [parameter for parameter in self._policy.parameters() if parameter.requires_grad]
        standing = [parameter.grad for parameter in parameters]
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self._policy.device))

        def begin() -> None:
            sums.clear()
            for parameter in parameters:
                parameter.grad = None

        def learn(rows: Tensor, part: Trajectories) -> None:
            value, figures = loss(rows, part)
            value.backward()
            for name, figure in figures.items():
                sums[name] += figure.detach()

        self.each(episodes, learn, begin=begin)
        for parameter, before in zip(parameters, standing, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)
        return {name: float(value) for name, value in sums.items()}

    def _first_that_fails(
        self, episodes: Trajectories, work: Callable[[Tensor, Trajectories], None]
    ) -> Trajectories | None:
        """The micro-batch that runs out of memory, if any does; when this returns, the error holds no tensors."""
        for rows, part in episodes.micro_batches(self.tokens):
            try:
                work(rows, part)
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise torch.OutOfMemoryError(self._does_not_fit(part)) from error
                if is_sharded(self._policy):  # the other ranks wait for this one in the middle of a pass
                    raise torch.OutOfMemoryError(self._fails_in_shards(part)) from error
                return part
        return None

    def _halve(self, failed: Trajectories) -> None:
        self._limit = failed.input_ids_BS.numel() // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _LOG.warning(
            "%d episodes of up to %d tokens did not fit in the memory of '%s': going on with micro_batch_tokens=%d",
            *failed.input_ids_BS.shape,
            self._policy.device,
            self._limit,
        )

    def _fails_in_shards(self, failed: Trajectories) -> str:
        episodes, width = failed.input_ids_BS.shape
        return (
            f"{episodes} episodes of up to {width} tokens do not fit in the memory of '{self._policy.device}', and "
            f"with weights in shards no rank can begin again alone: set micro_batch_tokens={episodes * width // 2}"
        )

    def _does_not_fit(self, episode: Trajectories) -> str:
        config, mends = self._config, ["a lower max_new_tokens", "a LoRA adapter (lora_rank)"]
        if not config.gradient_checkpointing:
            mends.insert(0, "gradient_checkpointing=True")
        if config.precision != "bf16":
            mends.insert(0, "precision='bf16'")
        return (
            f"a single episode of {episode.input_ids_BS.shape[1]} tokens does not fit in the memory of "
            f"'{self._policy.device}': try {', '.join(mends[:-1])} or {mends[-1]}"
        )
