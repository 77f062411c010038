"""Supervised warm start: maximum likelihood of the reference completions, given their prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.config import option
from agents.distributed import ALONE, World
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
    loop = TrainingLoop(policy.model.parameters(), len(pairs.lengths_N), config, width=width, seed=seed)
    losses: list[float] = []
    if loop.batch < world.size:
        raise ValueError(f"{loop.batch} pairs a step cannot be shared out to {world.size} ranks: raise batch_size")
    world.broadcast(policy)
    for rows in loop:
        own = rows[world.rank :: world.size]
        loss, answer_loss = pair_loss(policy, pairs, own, config.prompt_loss_weight, world)
        loss.backward()
        world.sum_gradients(loop.parameters)
        loop.update()
        losses.append(answer_loss)
        if on_step is not None:
            on_step(loop.step, loop.steps, answer_loss)
    return float(np.mean(losses[-max(1, loop.steps // 10) :]))


def pair_loss(
    policy: TextPolicy, pairs: Pairs, rows: Sequence[int], prompt_loss_weight: float = 0.0, world: World = ALONE
) -> tuple[Tensor, float]:
    """Mean negative log-likelihood, in nats a token, of some pairs' completions (and, weighted, of their prompts).

    Returns:
        This rank's part of the weighted loss, with gradients, and the completions' part of all ranks'.
    """
    at = torch.as_tensor(rows)
    lengths = pairs.lengths_N[at]
    input_ids = pairs.input_ids_NS[at, : int(lengths.max())].to(policy.device)
    columns = torch.arange(input_ids.shape[1] - 1)
    answer = (columns >= pairs.prompt_lengths_N[at, None] - 1) & (columns < lengths[:, None] - 1)
    kept = (columns < lengths[:, None] - 1) if prompt_loss_weight else answer
    rows_N, columns_N = kept.nonzero(as_tuple=True)
    select_N = (rows_N * input_ids.shape[1] + columns_N).to(policy.device)
    positions = torch.arange(input_ids.shape[1], device=policy.device).expand(len(at), -1)
    targets_N = input_ids.flatten()[select_N + 1]
    log_probs_N, _, _ = policy.score_places(Places(input_ids, positions, None, select_N), targets_N, with_entropy=False)
    nll_N = -log_probs_N
    is_answer_N = answer[rows_N, columns_N].to(policy.device)
    weights_N = torch.where(is_answer_N, 1.0, prompt_loss_weight)
    answers_N = nll_N[is_answer_N].detach()
    answer_loss = world.sum(answers_N.sum()) / world.sum(len(answers_N))
    return (nll_N * weights_N).sum() / world.sum(weights_N.sum()), float(answer_loss)
