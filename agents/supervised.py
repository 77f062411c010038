"""Supervised warm start: maximum likelihood of the reference completions, given their prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.config import option
from agents.distributed import ALONE, World
from agents.micro_batches import MicroBatches, consecutive
from agents.packing import Places
from agents.policy import TextPolicy
from agents.training_loop import LoopConfig, TrainingLoop
from textgen_env import TextMDP


@dataclass
class SupervisedConfig(LoopConfig):
    """Options of the warm start; the items of its loop are (prompt, reference) pairs."""

    prompt_loss_weight: float = option(0.0, "weight of the prompt's own tokens in the loss; 0 learns answers alone")


@dataclass(frozen=True)
class Pairs:
    """N (prompt, reference) pairs as token rows: ``input_ids_NS`` padded on the right."""

    input_ids_NS: Tensor
    prompt_lengths_N: Tensor
    lengths_N: Tensor

    def __len__(self) -> int:
        return len(self.lengths_N)

    @property
    def shape(self) -> tuple[int, int]:
        """N, and S."""
        return len(self), self.input_ids_NS.shape[1]

    @property
    def answers_NS(self) -> Tensor:
        """bool (N, S − 1): True where the next token is the completion's."""
        columns = torch.arange(self.input_ids_NS.shape[1] - 1)
        return (columns >= self.prompt_lengths_N[:, None] - 1) & (columns < self.lengths_N[:, None] - 1)

    def select(self, rows: Sequence[int] | Tensor) -> Pairs:
        """Some of the pairs, trimmed to the longest of them."""
        at = torch.as_tensor(rows)
        lengths = self.lengths_N[at]
        return Pairs(self.input_ids_NS[at, : int(lengths.max())], self.prompt_lengths_N[at], lengths)

    def micro_batches(self, max_tokens: int) -> Iterator[tuple[Tensor, Pairs]]:
        """As `Trajectories.micro_batches`, in their order."""
        for rows in consecutive(self.shape, max_tokens):
            yield rows, self.select(rows)


def reference_pairs(mdp: TextMDP) -> Pairs:
    """Every (prompt, reference) of the environment's split, the EOS at the end; cut to the environment's limits.

    Raises:
        ValueError: the split has no references.
    """
    rows: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for index, prompt in enumerate(mdp.prompts):
        for reference in prompt.references:
            completion = mdp.tokenizer.encode_completion(prompt.text, reference)
            rows.append((mdp.prompt_ids(index), completion[: mdp.max_new_tokens]))
    if not rows:
        raise ValueError(f"split '{mdp.split}' of task '{mdp.task.name}' has no references to learn from")
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)
    for row, (prompt_ids, completion) in enumerate(rows):
        input_ids[row, : len(prompt_ids)] = torch.from_numpy(prompt_ids)
        input_ids[row, len(prompt_ids) : len(prompt_ids) + len(completion)] = torch.from_numpy(completion)
    return Pairs(
        input_ids,
        torch.tensor([len(prompt_ids) for prompt_ids, _ in rows]),
        torch.tensor([len(prompt_ids) + len(completion) for prompt_ids, completion in rows]),
    )


def supervised_fit(
    policy: TextPolicy,
    mdp: TextMDP,
    config: SupervisedConfig | None = None,
    *,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] | None = None,
    world: World = ALONE,
) -> float:
    """Fit the policy to the references of ``mdp``'s split.

    Args:
        policy: trained in place (its value head is not touched).
        mdp: the environment's rules; their split gives the pairs.
        config: the options.
        seed: the order of the pairs.
        on_step: called with (step, number of steps, loss in nats a token).
        world: the ranks that share out the pairs of each step, whose gradient is the same whatever their number.

    Returns:
        The mean loss of the last tenth of the steps, in nats a completion token.

    Raises:
        ValueError: the split has no references.
        FloatingPointError: the gradients are not finite.
    """
    config = config or SupervisedConfig()
    pairs = reference_pairs(mdp)
    width = policy.value_head.in_features
    loop = TrainingLoop(policy.model.parameters(), len(pairs), config, width=width, seed=seed)
    micro_batches = MicroBatches(policy, config, world)
    losses: list[float] = []
    if loop.batch < world.size:
        raise ValueError(f"{loop.batch} pairs a step cannot be shared out to {world.size} ranks: raise batch_size")
    world.broadcast(policy)
    for rows in loop:
        own = pairs.select(rows[world.rank :: world.size])
        losses.append(accumulate_pairs(policy, own, micro_batches, config.prompt_loss_weight, world))
        world.sum_gradients(loop.parameters)
        loop.update()
        if on_step is not None:
            on_step(loop.step, loop.steps, losses[-1])
    return float(np.mean(losses[-max(1, loop.steps // 10) :]))


def accumulate_pairs(
    policy: TextPolicy,
    pairs: Pairs,
    micro_batches: MicroBatches,
    prompt_loss_weight: float = 0.0,
    world: World = ALONE,
) -> float:
    """Add the gradients of the mean loss of pairs, in micro-batches; with ranks, this one's part of all pairs' mean.

    Returns:
        The negative log-likelihood of all ranks' completions, in nats a token.
    """
    answers = int(pairs.answers_NS.sum())
    prompts = int((pairs.lengths_N - 1).sum()) - answers
    count = world.sum(answers)
    weight = world.sum(answers + prompt_loss_weight * prompts)

    def loss(_rows: Tensor, part: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        weighted, answer = pair_losses(policy, part, prompt_loss_weight)
        return weighted / weight, {"answers": answer / count}

    return float(world.sum(micro_batches.accumulate(pairs, loss)["answers"]))


def pair_losses(policy: TextPolicy, pairs: Pairs, prompt_loss_weight: float = 0.0) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood, in nats, summed over the pairs' tokens.

    Returns:
        Of the completions and, weighted, of their prompts, with gradients; and of the completions alone, without.
    """
    input_ids = pairs.input_ids_NS.to(policy.device)
    count, length = pairs.shape
    columns = torch.arange(length - 1)
    answer = pairs.answers_NS
    kept = (columns < pairs.lengths_N[:, None] - 1) if prompt_loss_weight else answer
    rows_N, columns_N = kept.nonzero(as_tuple=True)
    select_N = (rows_N * length + columns_N).to(policy.device)
    positions = torch.arange(length, device=policy.device).expand(count, -1)
    targets_N = input_ids.flatten()[select_N + 1]
    log_probs_N, _, _ = policy.score_places(Places(input_ids, positions, None, select_N), targets_N, with_entropy=False)
    nll_N = -log_probs_N
    is_answer_N = answer[rows_N, columns_N].to(policy.device)
    weights_N = torch.where(is_answer_N, 1.0, prompt_loss_weight)
    return (nll_N * weights_N).sum(), nll_N[is_answer_N].detach().sum()
