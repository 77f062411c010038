"""An alignment report: a model beside its reference, by reward, judges, people, swaps, fluency and distance."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agents.alignment_duel import Duel, PairwiseJudge, pairwise_duel, people_duel, pointwise_duel
from agents.alignment_human import Consistency, judged_pairs, pair_consistency, rated_texts, rating_consistency
from agents.alignment_kl import KL, FrontierPoint, Mean, best_of_n_curve, kl_to
from agents.alignment_swaps import SwapGap, Swapped, Swaps, swap_gap
from agents.alignment_texts import LogLikelihoods, TextFigures, text_figures
from agents.evaluation import Sample
from agents.policy import TextPolicy
from agents.rollout import Collector
from agents.trajectories import Trajectories
from reward_models.feedback.agreement import Figure, bootstrapped
from textgen_env import Completion, Prompt, Reward, TextGenVectorEnv, TextMDP, TextTask

Array: TypeAlias = npt.NDArray[np.float64]

_ROWS = 64


@dataclass(frozen=True)
class Side:
    """One of the models: what acts, and the rules it acts under (the report's prompts, its own tokenizer)."""

    name: str
    policy: TextPolicy
    mdp: TextMDP


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
    scorers = dict(questions.scorers)
    paid = next(iter(scorers), None) if questions.has_reward else None
    played = play(model, chosen, samples_per_prompt, seed)
    texts, prompts = _texts(played), _prompts(played)
    scores = {name: returns(model.mdp, reward, played.completions) for name, reward in scorers.items()}
    missing: list[str] = []

    rival, pool, rival_scores, rival_pool = None, None, {}, None
    if reference is None:
        missing.append("There is no reference model: no win rate, no KL, no frontier.")
    else:
        draws = max(samples_per_prompt, best_of if paid else 1)
        pool = play(reference, chosen, draws, seed + 1)  # another seed: equal models are not to write equal texts
        rows = np.arange(len(pool)).reshape(-1, draws)[:, :samples_per_prompt].reshape(-1)
        rival = pool.select(rows.tolist())
        rival_scores = {name: returns(reference.mdp, reward, rival.completions) for name, reward in scorers.items()}
        if paid and best_of > 1:
            rival_pool = returns(reference.mdp, scorers[paid], pool.completions).reshape(-1, draws)

    duels: dict[str, Duel] = {}
    kl: KL | None = None
    if reference is not None and rival is not None:
        for name in scorers:
            duels[name] = pointwise_duel(scores[name], rival_scores[name], prompts)
        for name, judge in questions.pairwise.items():
            duels[name] = pairwise_duel(judge, prompts, texts, _texts(rival))
        if same_tokens(model, reference):
            kl = kl_to(reference.policy, model.policy, played)
        else:
            missing.append("The two models have different tokenizers: a KL between them is not defined.")
    frontier: tuple[FrontierPoint, ...] = ()
    if reference is not None and kl is not None and paid is not None:
        ends = (
            FrontierPoint("reference", 0.0, Mean.of(rival_scores[paid], prompts)),
            _point(model.name, kl, scores[paid], prompts),
        )
        frontier = _frontier(questions, ends, reference, scorers[paid], chosen, samples_per_prompt, seed + 3)
    consistency = _consistency(model.mdp, scorers, questions.judgements, seed) if questions.judgements else {}
    pairs = judged_pairs(questions.judgements)
    if pairs is not None and reference is not None and any(pairs.sources_I):
        try:
            duels["people"] = people_duel(pairs, *(questions.sources or (model.name, reference.name)))
        except ValueError as error:
            missing.append(f"No win rate by people: {error}.")

    swaps: dict[str, SwapGap] = {}
    swapped_prompts: dict[str, SwapGap] = {}
    if questions.swaps is not None:
        for name, reward in scorers.items():
            found = _same_answers_swapped(model.mdp, reward, played.completions, scores[name], questions.swaps, seed)
            if found is not None:
                swaps[name] = found
        swapped_prompts = _answers_to_swapped(model, scorers, scores, played, questions.swaps, seed)
        if not swaps and not swapped_prompts:
            missing.append(f"No prompt or answer has a word of the table '{questions.swaps.name}', or nothing scores.")

    sides = {model.name: (prompts, texts)}
    if rival is not None and reference is not None:
        sides.setdefault(f"{reference.name} (reference)", (_prompts(rival), _texts(rival)))
    return AlignmentReport(
        model=model.name,
        reference=None if reference is None else reference.name,
        task=model.mdp.task.name,
        prompts=len(chosen),
        samples_per_prompt=samples_per_prompt,
        seed=seed,
        reward=None if paid is None else _reward(paid, scores[paid], rival_scores.get(paid), prompts, seed),
        duels=duels,
        consistency=consistency,
        swaps=swaps,
        swapped_prompts=swapped_prompts,
        texts={
            side: text_figures(its_prompts, its_texts, questions.fluency, seed=seed)
            for side, (its_prompts, its_texts) in sides.items()
        },
        fluency=questions.fluency_name,
        kl=kl,
        frontier=frontier,
        best_of_n=() if rival_pool is None else tuple(best_of_n_curve(rival_pool)),
        samples=_samples(played, rival, scores.get(paid or ""), samples_per_prompt, num_samples),
        missing=tuple(missing),
    )


# ---------------------------------------------------------------- playing and scoring


def play(side: Side, prompt_indices: Sequence[int], samples_per_prompt: int, seed: int) -> Trajectories:
    """Sampled completions of some prompts, those of one prompt next to each other."""
    episodes = len(prompt_indices) * samples_per_prompt
    env = TextGenVectorEnv(
        min(episodes, _ROWS),
        mdp=with_reward(side.mdp, _UNSCORED),
        autoreset_mode="Disabled",
        defer_scoring=True,
    )
    played = Collector(env, side.policy, seed=seed).collect(
        episodes, samples_per_prompt=samples_per_prompt, prompt_indices=list(prompt_indices)
    )
    assert played is not None  # nobody abandons it
    return played


def _no_reward(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)


_UNSCORED = Reward(_no_reward, name="unscored")


def with_reward(mdp: TextMDP, reward: Reward) -> TextMDP:
    """The same rules with another reward, for evaluation."""
    view = copy.copy(mdp)
    view.reward = reward.frozen()
    return view


def returns(mdp: TextMDP, reward: Reward, completions: Sequence[Completion]) -> Array:
    """What a scorer says of finished completions, shape (B,)."""
    scores: Array = with_reward(mdp, reward).returns(completions)
    return scores


def written(mdp: TextMDP, prompt: Prompt, text: str) -> Completion:
    """A text that somebody else wrote, as a completion; however long it is."""
    ids = tuple(mdp.tokenizer.encode_completion(prompt.text, text).tolist())
    return Completion(prompt, text, ids, "eos", mdp.tokenizer.decode)


def same_tokens(first: Side, second: Side) -> bool:
    """Whether two models speak the same tokens, so that their probabilities can be compared one by one."""
    vocabularies = [side.mdp.tokenizer.hf.get_vocab() for side in (first, second)]
    return vocabularies[0] == vocabularies[1] and first.policy.vocab_size == second.policy.vocab_size


def _texts(played: Trajectories) -> list[str]:
    return [completion.text for completion in played.completions]


def _prompts(played: Trajectories) -> list[str]:
    return [completion.prompt.text for completion in played.completions]


def _reward(name: str, scores: Array, rival_scores: Array | None, prompts: Sequence[str], seed: int) -> RewardFigures:
    def figure(values: Array) -> Figure:
        _, owner = np.unique(np.asarray(prompts, dtype=object).astype(str), return_inverse=True)
        means_P = np.bincount(owner, values) / np.bincount(owner)
        return bootstrapped(lambda rows: float(means_P[rows].mean()), len(means_P), seed=seed)

    return RewardFigures(
        name,
        model=figure(scores),
        reference=None if rival_scores is None else figure(rival_scores),
        difference=None if rival_scores is None else figure(scores - rival_scores),
    )


def _samples(
    played: Trajectories, rival: Trajectories | None, scores: Array | None, samples_per_prompt: int, count: int
) -> tuple[tuple[Sample, str | None], ...]:
    shown = []
    for row in range(0, min(count * samples_per_prompt, len(played)), samples_per_prompt):
        completion = played.completions[row]
        score = math.nan if scores is None else float(scores[row])
        first = next(iter(completion.prompt.references), None)
        other = None if rival is None else rival.completions[row].text
        shown.append((Sample(completion.prompt.text, completion.text, first, score), other))
    return tuple(shown)


# ---------------------------------------------------------------- people


def _consistency(
    mdp: TextMDP, scorers: Mapping[str, Reward], judgements: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, tuple[Consistency, ...]]:
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
    for name, reward in scorers.items():
        of_kinds: list[Consistency] = []
        if pairs is not None:
            sides = [scored(reward, pairs.prompts_I, [texts[side] for texts in pairs.texts_I]) for side in (0, 1)]
            of_kinds.append(pair_consistency(pairs.votes_IA, sides[0] - sides[1], pairs.prompts_I, seed=seed))
        if rated is not None:
            scores = scored(reward, rated.prompts_I, rated.texts_I)
            of_kinds.append(rating_consistency(rated.ratings_IA, scores, rated.prompts_I, seed=seed))
        found[name] = tuple(of_kinds)
    return found


# ---------------------------------------------------------------- swaps


def swapped_prompt(swaps: Swaps, prompt: Prompt) -> tuple[Prompt, Swapped]:
    """The prompt with its words exchanged, its references' too, and what that did to the prompt itself."""
    change = swaps.swap(prompt.text)
    references = tuple(swaps.swap(reference).text for reference in prompt.references)
    return Prompt(change.text, references, prompt.metadata), change


def _same_answers_swapped(
    mdp: TextMDP, reward: Reward, completions: Sequence[Completion], scores: Array, swaps: Swaps, seed: int
) -> SwapGap | None:
    """Prompt, references and answer are swapped together: the same thing, said of somebody else."""
    twins, changes, rows = [], [], []
    for row, completion in enumerate(completions):
        prompt, in_prompt = swapped_prompt(swaps, completion.prompt)
        in_text = swaps.swap(completion.text)
        change = Swapped(in_text.text, in_prompt.forward + in_text.forward, in_prompt.backward + in_text.backward)
        if change.forward + change.backward:
            twins.append(written(mdp, prompt, in_text.text))
            changes.append(change)
            rows.append(row)
    if not rows:
        return None
    # The answers before the swap are scored as written texts too: both sides are tokenised alike.
    before = returns(mdp, reward, [written(mdp, completions[row].prompt, completions[row].text) for row in rows])
    after = returns(mdp, reward, twins)
    owners = [completions[row].prompt.text for row in rows]
    return swap_gap(swaps.name, before, after, changes, owners, of=len(scores), seed=seed)


def _answers_to_swapped(
    model: Side,
    scorers: Mapping[str, Reward],
    scores: Mapping[str, Array],
    played: Trajectories,
    swaps: Swaps,
    seed: int,
) -> dict[str, SwapGap]:
    """The model answers each prompt that has such words again, swapped: a prompt's mean scores, before and after."""
    samples = len(played) // len(set(played.prompt_groups_B.tolist()))
    first = played.completions[::samples]
    twins = [swapped_prompt(swaps, completion.prompt) for completion in first]
    rows = [row for row, (_, change) in enumerate(twins) if change.forward + change.backward]
    if not rows or not scorers:
        return {}
    changes = [twins[row][1] for row in rows]
    task = TextTask(model.mdp.task.name, {"train": tuple(twins[row][0] for row in rows)})
    rules = TextMDP(
        task,
        _UNSCORED,
        model.mdp.tokenizer,
        max_prompt_tokens=model.mdp.max_prompt_tokens,
        max_new_tokens=model.mdp.max_new_tokens,
        truncation_side=model.mdp.truncation_side,
        allowed_tokens=model.mdp.allowed_tokens,
    )
    answered = play(Side(model.name, model.policy, rules), range(len(rows)), samples, seed + 2)
    owners = [first[row].prompt.text for row in rows]
    return {
        name: swap_gap(
            swaps.name,
            scores[name].reshape(-1, samples).mean(-1)[rows],
            returns(rules, reward, answered.completions).reshape(-1, samples).mean(-1),
            changes,
            owners,
            of=len(first),
            seed=seed,
        )
        for name, reward in scorers.items()
    }


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
        scores = returns(side.mdp, reward, played.completions)
        points.append(_point(side.name, kl_to(reference.policy, side.policy, played), scores, _prompts(played)))
    return (*points, ends[1])


def _point(label: str, kl: KL, scores: Array, prompts: Sequence[str]) -> FrontierPoint:
    return FrontierPoint(label, kl.exact.value, Mean.of(scores, prompts), kl.exact.standard_error)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
