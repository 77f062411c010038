"""How far a model has gone from its reference, with a standard error, and what the same distance buys by best-of-n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.kl import k1, k3
from agents.policy import TextPolicy, chosen
from agents.trajectories import Trajectories

Array: TypeAlias = npt.NDArray[np.float64]

_LOGITS = 2**25
"""Floats of one model's distributions in a forward: 128 MiB."""


@dataclass(frozen=True)
class Mean:
    """A mean over prompts with its standard error; None of one prompt."""

    value: float
    standard_error: float | None

    @classmethod
    def of(cls, values_N: npt.ArrayLike, prompts_N: Sequence[object] | npt.NDArray[np.int64]) -> Mean:
        """The mean of N values whose prompts are the units of chance: values of one prompt are averaged first.

        >>> Mean.of([1.0, 3.0, 4.0], ["p", "p", "q"])
        Mean(value=3.0, standard_error=1.0)
        """
        _, owner_N = np.unique(np.asarray(prompts_N).astype(str), return_inverse=True)
        means_P = np.bincount(owner_N, np.asarray(values_N, np.float64)) / np.bincount(owner_N)
        error = float(means_P.std(ddof=1) / math.sqrt(len(means_P))) if len(means_P) > 1 else None
        return cls(float(means_P.mean()), error)


@dataclass(frozen=True)
class KL:
    """KL(π‖π_ref) of whole completions, in nats, by three unbiased estimators over the same samples of π."""

    exact: Mean
    """Σ_t KL(π(·|s_t)‖π_ref(·|s_t)) along the sampled prefixes: what each token could have been is summed, not drawn
    (Amini, Vieira and Cotterell, 2025), so its standard error is the smallest as a rule."""
    k1: Mean
    """Σ_t d_t, d = log π(a) − log π_ref(a)."""
    k3: Mean
    """Σ_t e^(−d_t) − 1 + d_t."""
    per_token: float
    """``exact`` by the mean number of tokens of a completion."""


def kl_to(reference: TextPolicy, policy: TextPolicy, played: Trajectories) -> KL:
    """The KL, from completions that ``policy`` has sampled.

    Raises:
        ValueError: the two have not the same tokens.
    """
    samples = kl_samples(reference, policy, played)
    means = {name: Mean.of(values_B, played.prompt_groups_B.tolist()) for name, values_B in samples.items()}
    return KL(**means, per_token=float(samples["exact"].sum()) / played.num_tokens)


@torch.no_grad()
def kl_samples(reference: TextPolicy, policy: TextPolicy, played: Trajectories) -> dict[str, Array]:
    """Each estimator's value for each of the B completions.

    Raises:
        ValueError: the two have not the same number of tokens.
    """
    if reference.vocab_size != policy.vocab_size:
        raise ValueError(
            f"a KL wants the same tokens on both sides, got {policy.vocab_size} and {reference.vocab_size}: "
            "the reference must be a model with the same tokenizer"
        )
    samples = {name: np.zeros(len(played)) for name in ("exact", "k1", "k3")}
    for rows, part in played.micro_batches(max(1, _LOGITS // policy.vocab_size)):
        rows_N, steps_N = part.action_mask_BT.nonzero(as_tuple=True)
        actions_N = part.input_ids_BS[rows_N, part.prompt_lengths_B[rows_N] + steps_N]
        ours_NV, theirs_NV = _log_probs(policy, part), _log_probs(reference, part)
        log_ratio_N = chosen(ours_NV, actions_N) - chosen(theirs_NV, actions_N)
        gaps_NV = torch.where(ours_NV > -torch.inf, ours_NV - theirs_NV, 0.0)  # a token that cannot come counts nothing
        values = {"exact": (ours_NV.exp() * gaps_NV).sum(-1), "k1": k1(log_ratio_N), "k3": k3(log_ratio_N)}
        for name, values_N in values.items():
            samples[name][rows.numpy()] = np.bincount(
                rows_N.cpu().numpy(), values_N.double().cpu().numpy(), minlength=len(part)
            )
    return samples


def _log_probs(policy: TextPolicy, part: Trajectories) -> Tensor:
    """log π of every token at every place where an action was taken, (N, V)."""
    places = policy.places(part.input_ids_BS, part.prompt_lengths_B, part.action_mask_BT, part.prompt_groups_B)
    logits_NV, _ = policy(places.input_ids, places.position_ids, places.select_N, attention_mask=places.attention_mask)
    if part.allowed_BTV is not None:
        logits_NV = logits_NV.masked_fill(~part.allowed_BTV[part.action_mask_BT], -torch.inf)
    return torch.log_softmax(logits_NV, dim=-1)


# ---------------------------------------------------------------- best of n


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n from the model it chooses from: ``log n − (n − 1)/n`` nats (Stiennon et al. 2020).

    At most so much: exactly, where no two completions have the same score (Beirami et al. 2024).

    >>> best_of_n_kl(1), round(best_of_n_kl(4), 3)
    (0.0, 0.636)
    """
    return math.log(n) - (n - 1) / n


def expected_best(scores_PN: npt.ArrayLike, n: int) -> Array:
    """The expected best of n of each prompt's N scores, without bias and without drawing, shape (P,).

    ``Σ_i C(i − 1, n − 1) / C(N, n) r_(i)`` over the scores in rising order: of all subsets of n, so many have the i-th
    for their best.

    Raises:
        ValueError: n is not from 1 to N.

    >>> expected_best([[0.0, 1.0]], 2).tolist(), expected_best([[0.0, 1.0]], 1).tolist()
    ([1.0], [0.5])
    """
    rising_PN = np.sort(np.asarray(scores_PN, np.float64), axis=-1)
    count = rising_PN.shape[-1]
    if not 1 <= n <= count:
        raise ValueError(f"the best of {n} cannot be told from {count} scores a prompt")
    weights_N = np.array([math.comb(index, n - 1) / math.comb(count, n) for index in range(count)])
    best_P: Array = rising_PN @ weights_N
    return best_P


@dataclass(frozen=True)
class FrontierPoint:
    """What a policy earns, and how far from the reference."""

    label: str
    kl: float
    """Nats a completion."""
    reward: Mean
    kl_error: float | None = None
    """Standard error of ``kl``; None where it is not estimated."""


def best_of_n_curve(scores_PN: npt.ArrayLike) -> list[FrontierPoint]:
    """The baseline of any training: the reference with the best of 1, 2, 4, … of its N scores a prompt."""
    scores_PN = np.asarray(scores_PN, np.float64)
    prompts = range(len(scores_PN))
    powers = [2**power for power in range(int(math.log2(scores_PN.shape[-1])) + 1)]
    return [
        FrontierPoint(f"best of {n}", best_of_n_kl(n), Mean.of(expected_best(scores_PN, n), list(prompts)))
        for n in powers
    ]
