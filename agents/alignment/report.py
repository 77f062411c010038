"""An alignment report: a model beside its reference, by reward, judges, people, swaps, fluency and distance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agents.alignment.answers import (
    Answers,
    Side,
    play,
    reference_answers,
    returns,
    same_tokens,
    written,
)
from agents.alignment.duel import Duel, PairwiseJudge, pairwise_duel, people_duel, pointwise_duel
from agents.alignment.human import Consistency, judged_pairs, pair_consistency, rated_texts, rating_consistency
from agents.alignment.kl import KL, FrontierPoint, Mean, best_of_n_curve, kl_to
from agents.alignment.swapped import answers_to_swapped, same_answers_swapped
from agents.alignment.swaps import SwapGap, Swaps
from agents.alignment.texts import LogLikelihoods, TextFigures, text_figures
from agents.evaluation import Sample
from reward_models.feedback.agreement import Figure, bootstrapped
from textgen_env import Prompt, Reward, TextMDP

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RewardFigures:
    """What the texts earn; 95 % intervals, by the bootstrap over prompts."""

    name: str
    model: Figure
    reference: Figure | None
    difference: Figure | None
    """Model less reference, paired by prompt."""


@dataclass(frozen=True)
class AlignmentReport:
    """What `align` found. What was not asked for, or cannot be told, is None or empty; ``missing`` says why."""

    model: str
    reference: str | None
    task: str
    prompts: int
    samples_per_prompt: int
    seed: int
    reward: RewardFigures | None
    duels: Mapping[str, Duel]
    """Judge -> how often it prefers the model's text to the reference's."""
    consistency: Mapping[str, tuple[Consistency, ...]]
    """Scorer -> how far it agrees with people, a figure for each kind of judgement."""
    swaps: Mapping[str, SwapGap]
    """Scorer -> what it does to the score of the model's own answers when words change places."""
    swapped_prompts: Mapping[str, SwapGap]
    """Scorer -> how the scores of the model's answers change when words of the *prompts* change places."""
    texts: Mapping[str, TextFigures]
    """Side -> length, variety, fluency."""
    fluency: str | None
    """The language model that judged fluency."""
    kl: KL | None
    frontier: tuple[FrontierPoint, ...]
    """Reference, checkpoints and model."""
    best_of_n: tuple[FrontierPoint, ...]
    """What the reference earns by best-of-n at a known KL: the baseline."""
    samples: tuple[tuple[Sample, str | None], ...]
    """Some of the model's texts, each with the reference model's to the same prompt."""
    missing: tuple[str, ...] = ()
    """What the report could have had, in sentences."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not defined (NaN) is null."""
        plain: dict[str, Any] = _without_nan(dataclasses.asdict(self))
        return plain


@dataclass
class Questions:
    """What `align` is asked besides the two models."""

    scorers: Mapping[str, Reward] = field(default_factory=dict)
    """Name -> a scorer of texts. The first is the reward, if `has_reward`; the others are judges."""
    has_reward: bool = True
    pairwise: Mapping[str, PairwiseJudge] = field(default_factory=dict)
    """Name -> a judge of pairs."""
    judgements: Sequence[Mapping[str, Any]] = ()
    """What people said: records as `judged_pairs` reads them."""
    sources: tuple[str, str] | None = None
    """What the judgements call model and reference; by default their names."""
    swaps: Swaps | None = None
    fluency: LogLikelihoods | None = None
    fluency_name: str | None = None
    checkpoints: Sequence[Side] = ()
    """Further points of the frontier."""
    history: Sequence[FrontierPoint] = ()
    """Points that a run has measured itself."""


def align(
    model: Side,
    reference: Side | None,
    questions: Questions,
    *,
    num_prompts: int = 200,
    samples_per_prompt: int = 4,
    best_of: int = 16,
    num_samples: int = 3,
    seed: int = 0,
) -> AlignmentReport:
    """Let both models answer the same prompts, and measure.

    Args:
        model: the one the report is about.
        reference: what it is compared with, and its distance is measured from.
        questions: what to measure.
        num_prompts: prompts of the split, drawn without replacement; all where it has fewer.
        samples_per_prompt: completions a prompt, of either model.
        best_of: completions a prompt of the reference for the best-of-n curve; 1 draws no curve.
        num_samples: texts to show.
        seed: of prompts, sampling and bootstrap.

    Raises:
        ValueError: a number is below 1, or people's judgements have nothing to say about what was asked.
        RewardError: a scorer failed; the message names it and the text.
    """
    if min(num_prompts, samples_per_prompt, best_of) < 1:
        counts = f"num_prompts={num_prompts}, samples_per_prompt={samples_per_prompt}, best_of={best_of}"
        raise ValueError(f"{counts}: each must be at least 1")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(model.mdp.prompts))[:num_prompts]).tolist()
    scorers = questions.scorers
    paid = next(iter(scorers), None) if questions.has_reward else None
    missing: list[str] = []
    mine = Answers.of(model, play(model, chosen, samples_per_prompt, seed), scorers)
    theirs, pool_PN = None, None
    if reference is None:
        missing.append("There is no reference model: no win rate, no KL, no frontier.")
    else:  # another seed: equal models are not to write equal texts
        theirs, pool_PN = reference_answers(
            reference, chosen, samples_per_prompt, best_of if paid else 1, scorers, paid, seed + 1
        )
    kl: KL | None = None
    if reference is not None:
        if same_tokens(model, reference):
            kl = kl_to(reference.policy, model.policy, mine.played)
        else:
            missing.append("The two models have different tokenizers: a KL between them is not defined.")
    frontier: tuple[FrontierPoint, ...] = ()
    if reference is not None and theirs is not None and kl is not None and paid is not None:
        ends = (
            FrontierPoint("reference", 0.0, Mean.of(theirs.scores[paid], theirs.prompts)),
            _point(model.name, kl, mine.scores[paid], mine.prompts),
        )
        frontier = _frontier(questions, ends, reference, scorers[paid], chosen, samples_per_prompt, seed + 3)
    if questions.fluency_name in (model.name, None if reference is None else reference.name) and questions.fluency:
        missing.append(f"'{questions.fluency_name}' judges fluency and is judged: it finds its own texts fluent.")
    consistency, unclear = _consistency(model.mdp, scorers, questions.judgements, seed)
    duels, undecided = _duels(questions, model, reference, mine, theirs)
    swaps, swapped_prompts, unswapped = _swaps(questions, model, mine, seed)

    sides = {model.name: mine}
    if reference is not None and theirs is not None:
        sides[f"{reference.name} (reference)"] = theirs
    return AlignmentReport(
        model=model.name,
        reference=None if reference is None else reference.name,
        task=model.mdp.task.name,
        prompts=len(chosen),
        samples_per_prompt=samples_per_prompt,
        seed=seed,
        reward=None if paid is None else _reward(paid, mine, theirs, seed),
        duels=duels,
        consistency=consistency,
        swaps=swaps,
        swapped_prompts=swapped_prompts,
        texts={
            side: text_figures(answers.prompts, answers.texts, questions.fluency, seed=seed)
            for side, answers in sides.items()
        },
        fluency=questions.fluency_name,
        kl=kl,
        frontier=frontier,
        best_of_n=() if pool_PN is None else tuple(best_of_n_curve(pool_PN)),
        samples=_samples(mine, theirs, paid, samples_per_prompt, num_samples),
        missing=(*missing, *unclear, *undecided, *unswapped),
    )


def _reward(name: str, mine: Answers, theirs: Answers | None, seed: int) -> RewardFigures:
    def figure(values: Array) -> Figure:
        _, owner = np.unique(np.asarray(mine.prompts, dtype=object).astype(str), return_inverse=True)
        means_P = np.bincount(owner, values) / np.bincount(owner)
        return bootstrapped(lambda rows: float(means_P[rows].mean()), len(means_P), seed=seed)

    return RewardFigures(
        name,
        model=figure(mine.scores[name]),
        reference=None if theirs is None else figure(theirs.scores[name]),
        difference=None if theirs is None else figure(mine.scores[name] - theirs.scores[name]),
    )


def _samples(
    mine: Answers, theirs: Answers | None, paid: str | None, samples_per_prompt: int, count: int
) -> tuple[tuple[Sample, str | None], ...]:
    shown = []
    for row in range(0, min(count * samples_per_prompt, len(mine.texts)), samples_per_prompt):
        first = next(iter(mine.played.completions[row].prompt.references), None)
        score = math.nan if paid is None else float(mine.scores[paid][row])
        other = None if theirs is None else theirs.texts[row]
        shown.append((Sample(mine.prompts[row], mine.texts[row], first, score), other))
    return tuple(shown)


def _duels(
    questions: Questions, model: Side, reference: Side | None, mine: Answers, theirs: Answers | None
) -> tuple[dict[str, Duel], list[str]]:
    """The win rate under every judge, and sentences about those that cannot be told."""
    if reference is None or theirs is None:
        return {}, []
    duels = {name: pointwise_duel(mine.scores[name], theirs.scores[name], mine.prompts) for name in questions.scorers}
    for name, judge in questions.pairwise.items():
        duels[name] = pairwise_duel(judge, mine.prompts, mine.texts, theirs.texts)
    pairs = judged_pairs(questions.judgements)
    if pairs is None or not any(pairs.sources_I):
        return duels, []
    try:
        duels["people"] = people_duel(pairs, *(questions.sources or (model.name, reference.name)))
    except ValueError as error:
        return duels, [f"No win rate by people: {error}."]
    return duels, []


# ---------------------------------------------------------------- people


def _consistency(
    mdp: TextMDP, scorers: Mapping[str, Reward], judgements: Sequence[Mapping[str, Any]], seed: int
) -> tuple[dict[str, tuple[Consistency, ...]], list[str]]:
    """Each scorer's figures, and sentences about those that cannot be told."""
    if not judgements:
        return {}, []
    known = {prompt.text: prompt for prompt in mdp.prompts}  # with references and metadata, where the prompt is ours
    pairs, rated = judged_pairs(judgements), rated_texts(judgements)
    if pairs is None and rated is None:
        raise ValueError("the feedback holds no comparison, ranking or rating: nothing to agree with")

    def scored(reward: Reward, prompts: Sequence[str], texts: Sequence[str]) -> Array:
        completions = [
            written(mdp, known.get(prompt, Prompt(prompt)), text) for prompt, text in zip(prompts, texts, strict=True)
        ]
        return returns(mdp, reward, completions)

    found: dict[str, tuple[Consistency, ...]] = {}
    unclear: list[str] = []
    for name, reward in scorers.items():
        asked: list[Callable[[], Consistency]] = []
        if pairs is not None:
            first, second = (scored(reward, pairs.prompts_I, [texts[s] for texts in pairs.texts_I]) for s in (0, 1))
            asked.append(partial(pair_consistency, pairs.votes_IA, first - second, pairs.prompts_I, seed=seed))
        if rated is not None:
            scores = scored(reward, rated.prompts_I, rated.texts_I)
            asked.append(partial(rating_consistency, rated.ratings_IA, scores, rated.prompts_I, seed=seed))
        of_kinds = []
        for ask in asked:
            try:
                of_kinds.append(ask())
            except ValueError as error:  # balanced votes, or scores that are all alike
                unclear.append(f"No consistency of '{name}' with people: {error}.")
        if of_kinds:
            found[name] = tuple(of_kinds)
    return found, unclear


# ---------------------------------------------------------------- swaps


def _swaps(
    questions: Questions, model: Side, mine: Answers, seed: int
) -> tuple[dict[str, SwapGap], dict[str, SwapGap], list[str]]:
    """Of the same answers, of answers to swapped prompts, and what is to be said where there are none."""
    table, same = questions.swaps, {}
    if table is None or not questions.scorers:
        return {}, {}, [] if table is None else ["Nothing scores texts: swaps of words change no score."]
    for name, reward in questions.scorers.items():
        found = same_answers_swapped(model.mdp, reward, mine.played.completions, table, seed)
        if found is not None:
            same[name] = found
    answers = answers_to_swapped(model, questions.scorers, mine, table, seed)
    told = [] if same or answers else [f"No prompt or answer has a word of the table '{table.name}'."]
    return same, answers, told


# ---------------------------------------------------------------- the frontier


def _frontier(
    questions: Questions,
    ends: tuple[FrontierPoint, FrontierPoint],
    reference: Side,
    reward: Reward,
    chosen: Sequence[int],
    samples_per_prompt: int,
    seed: int,
) -> tuple[FrontierPoint, ...]:
    """From the reference, over what a run has measured and the checkpoints, to the model."""
    points = [ends[0], *questions.history]
    for number, side in enumerate(questions.checkpoints):
        if not same_tokens(side, reference):
            raise ValueError(f"checkpoint '{side.name}' has another tokenizer than the reference: no KL between them")
        played = play(side, chosen, samples_per_prompt, seed + number)
        answers = Answers.of(side, played, {"reward": reward})
        points.append(
            _point(side.name, kl_to(reference.policy, side.policy, played), answers.scores["reward"], answers.prompts)
        )
    return (*points, ends[1])


def _point(label: str, kl: KL, scores: Array, prompts: Sequence[str]) -> FrontierPoint:
    return FrontierPoint(label, kl.exact.value, Mean.of(scores, prompts), kl.exact.standard_error)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
