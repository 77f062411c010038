"""Two models side by side: how often a judge prefers one's text, and whether it matters which text stands first."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agents.alignment.human import JudgedPairs
from reward_models.feedback.agreement import RESAMPLES, Figure, Tally, bootstrapped, wilson
from textgen_env.lookup import did_you_mean

Array: TypeAlias = npt.NDArray[np.float64]

PairwiseJudge: TypeAlias = Callable[[Sequence[str], Sequence[tuple[str, str]]], Array]
"""Of N prompts and pairs of texts: 1 where the first text is better, −1 the second, 0 a tie, NaN no answer."""


@dataclass(frozen=True)
class Duel:
    """How often a judge prefers the model's text to the reference's."""

    rate: Figure
    """The win rate: the mean outcome of a text, a tie counted as one half. 95 % interval: Wilson's where each prompt
    has one outcome, else by the bootstrap over prompts."""
    wins: int
    ties: int
    losses: int
    undecided: int = 0
    """Pairs that the judge gave no answer about, in one order or both: they do not count."""
    order: OrderSwap | None = None
    """Of a pairwise judge."""


@dataclass(frozen=True)
class OrderSwap:
    """What a pairwise judge said when the same two texts changed places."""

    inconsistent: Tally
    """Pairs about which the two answers differ: position bias, or chance."""
    first_preferred: Tally
    """Answers that prefer the text shown first, ties apart: one half without position bias."""


def pointwise_duel(
    scores_N: npt.ArrayLike, rival_scores_N: npt.ArrayLike, prompts_N: Sequence[str], *, tolerance: float = 0.0
) -> Duel:
    """The text with the higher score wins; scores within ``tolerance`` are a tie.

    >>> pointwise_duel([1.0, 2.0, 3.0], [1.0, 0.0, 0.0], ["p", "q", "r"]).rate.value
    0.8333333333333334
    """
    gaps_N = np.asarray(scores_N, np.float64) - np.asarray(rival_scores_N, np.float64)
    return counted(np.where(np.abs(gaps_N) <= tolerance, 0.0, np.sign(gaps_N)), prompts_N)


def pairwise_duel(
    judge: PairwiseJudge, prompts_N: Sequence[str], texts_N: Sequence[str], rivals_N: Sequence[str]
) -> Duel:
    """Every pair is shown in both orders; who is preferred in both wins, all else is a tie (Zheng et al. 2023, 3.4)."""
    ahead_N = judge(prompts_N, list(zip(texts_N, rivals_N, strict=True)))
    behind_N = -judge(prompts_N, list(zip(rivals_N, texts_N, strict=True)))
    answered_N = ~(np.isnan(ahead_N) | np.isnan(behind_N))
    ahead_N, behind_N = ahead_N[answered_N], behind_N[answered_N]
    prompts = [prompt for prompt, answered in zip(prompts_N, answered_N, strict=True) if answered]
    found = counted(np.where(ahead_N == behind_N, ahead_N, 0.0), prompts)
    decided = int(np.count_nonzero(ahead_N) + np.count_nonzero(behind_N))
    order = OrderSwap(
        inconsistent=Tally(int((ahead_N != behind_N).sum()), len(ahead_N)),
        first_preferred=Tally(int((ahead_N > 0).sum() + (behind_N < 0).sum()), decided),
    )
    return Duel(found.rate, found.wins, found.ties, found.losses, int((~answered_N).sum()), order)


def people_duel(pairs: JudgedPairs, model: str, reference: str) -> Duel:
    """The same from people's comparisons of texts whose ``sources`` are known: an outcome is one vote.

    Raises:
        ValueError: no pair is of these two sources; the message names those there are.
    """
    rows = [row for row, sources in enumerate(pairs.sources_I) if sources and set(sources) == {model, reference}]
    if model == reference or not rows:
        known = sorted({source for sources in pairs.sources_I if sources for source in sources})
        unknown = next((name for name in (model, reference) if name not in known), model)
        raise ValueError(
            f"people have compared no text of '{model}' with one of '{reference}'; {did_you_mean(unknown, known)}"
        )
    outcomes, prompts = [], []
    for row in rows:
        sources = pairs.sources_I[row]
        assert sources is not None
        sign = 1.0 if sources[0] == model else -1.0
        votes = pairs.votes_IA[row]
        outcomes += (sign * votes[~np.isnan(votes)]).tolist()
        prompts += [pairs.prompts_I[row]] * int((~np.isnan(votes)).sum())
    return counted(outcomes, prompts)


def counted(outcomes_N: npt.ArrayLike, prompts_N: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> Duel:
    """The win rate of N outcomes: 1 won, −1 lost, 0 a tie. NaN where there are none."""
    outcomes_N = np.asarray(outcomes_N, np.float64)
    if len(outcomes_N) != len(prompts_N):
        raise ValueError(f"an outcome for each prompt is wanted, got {len(outcomes_N)} for {len(prompts_N)}")
    points_N = (1 + outcomes_N) / 2
    _, owner_N = np.unique(np.asarray(prompts_N, dtype=object).astype(str), return_inverse=True)
    if not len(points_N):
        rate = Figure(math.nan)
    elif len(set(owner_N.tolist())) == len(owner_N):
        share = float(points_N.mean())
        rate = Figure(share, wilson(share, len(points_N)))
    else:
        points_P, count_P = np.bincount(owner_N, points_N), np.bincount(owner_N)
        rate = bootstrapped(
            lambda rows: float(points_P[rows].sum() / count_P[rows].sum()),
            len(count_P),
            resamples=resamples,
            seed=seed,
        )
    wins, losses = int((outcomes_N > 0).sum()), int((outcomes_N < 0).sum())
    return Duel(rate, wins, len(outcomes_N) - wins - losses, losses)


def as_pairwise(judge: Any) -> PairwiseJudge | None:
    """A judge of pairs, checked; None if it scores texts one by one.

    Args:
        judge: a function that names an argument ``pairs`` (and perhaps ``prompts``) and returns for each pair 0 (the
            first text is better), 1 (the second), None (a tie) or −1 (no answer); or an object with TRL's
            ``judge(prompts, completions, shuffle_order)``.
    """
    if callable(getattr(judge, "judge", None)):
        ask: Callable[..., Any] = judge.judge
        return lambda prompts, pairs: _answers(
            ask(list(prompts), [list(pair) for pair in pairs], shuffle_order=False), len(pairs)
        )
    if not callable(judge) or inspect.isclass(judge):
        return None
    parameters = inspect.signature(judge).parameters
    if "pairs" not in parameters:
        return None
    wants_prompts = "prompts" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def answers(prompts: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Array:
        extra = {"prompts": list(prompts)} if wants_prompts else {}
        return _answers(judge(pairs=list(pairs), **extra), len(pairs))

    return answers


def _answers(given: Any, count: int) -> Array:
    meanings = {0: 1.0, 1: -1.0, None: 0.0, -1: math.nan}
    answers = list(given)
    if len(answers) != count:
        raise ValueError(f"the judge gave {len(answers)} answers about {count} pairs: return one a pair")
    for answer in answers:
        if answer not in meanings:
            raise ValueError(f"the judge answered {answer!r:.80}: return 0 or 1 (the better text), None (a tie) or -1")
    return np.array([meanings[answer] for answer in answers], dtype=np.float64)
