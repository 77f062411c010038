"""Who judges in a loop: people through a store, or simulated annotators with a gold reward that stays with them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.base import TextAlgorithm
from agents.evaluation import collector_on
from agents.rlhf.folder import LoopFolder, Stage
from agents.rlhf.reward import spearman
from agents.rlhf.settings import FeedbackKind, RLHFSettings
from reward_models.feedback import (
    FeedbackStore,
    Item,
    Prefer,
    SimulatedAnnotator,
    Task,
    answer_all,
    export_judgements,
    gold_reward,
    read_items,
)
from reward_models.feedback.agreement import raw_agreement
from reward_models.feedback.annotators import Gold
from reward_models.feedback.answers import Rate
from reward_models.feedback.items import SCALE
from reward_models.preference.data import Comparison, Preference, Rating
from textgen_env import TextMDP
from textgen_env.reward_registry import resolve_reward

STORE = "feedback.db"
GIVEN = "given.jsonl"
_DRAWS = 20


def write_pairs(agent: TextAlgorithm, mdp: TextMDP, count: int, *, seed: int) -> list[tuple[str, str]]:
    """Let a policy write two completions of each of ``count`` prompts, drawn epoch by epoch.

    Args:
        agent: writes.
        mdp: whose prompts are asked; its reward is not looked at.
        count: how many pairs.
        seed: draws prompts and completions.

    Returns:
        (prompt, completion), the two of a prompt side by side.
    """
    generator = np.random.default_rng(seed)
    prompts: list[int] = []
    while len(prompts) < count:
        prompts += generator.permutation(len(mdp.prompts)).tolist()
    played = collector_on(agent, mdp, 2 * count, seed).collect(
        2 * count, samples_per_prompt=2, prompt_indices=prompts[:count]
    )
    assert played is not None  # nobody abandons it
    return [(info["prompt"], info["text"]) for info in played.infos]


def items_of(texts: Sequence[tuple[str, str]], kind: FeedbackKind, source: str) -> list[Item]:
    """What is to be judged: pairs of different texts, or each text of a prompt once.

    Args:
        texts: as `write_pairs` gives them.
        kind: of judgement.
        source: what the policy is called in the items; never shown.

    Raises:
        ValueError: there are pairs to be compared, and the two texts are the same everywhere.
    """
    if kind == "rating":
        return [Item.of(prompt, [text], sources=[source]) for prompt, text in dict.fromkeys(texts)]
    items = [
        Item.of(prompt, [first, second], sources=[source, source])
        for (prompt, first), (_, second) in zip(texts[::2], texts[1::2], strict=True)
        if first != second
    ]
    if not items:
        raise ValueError(
            f"the policy wrote the same text twice for each of {len(texts) // 2} prompts: there is nothing to compare. "
            "Is the model one that can write, and the cap on new tokens more than a few?"
        )
    return items


def simulate(settings: RLHFSettings, gold: Gold, round: int, items: Sequence[Item], stage: Stage) -> dict[str, Any]:
    """Let simulated annotators judge all items; what was left of an earlier attempt is thrown away."""
    stage.clear()
    with FeedbackStore(stage.path / STORE, create=True) as store:
        store.configure(overlap=settings.overlap, seed=settings.seed)
        store.add_items(items)
        bounds = _gold_range(settings)
        names = [f"annotator-{number}" for number in range(1, settings.overlap + 1)]
        answer_all(
            store,
            {
                name: _annotator(settings, gold, bounds, seed_of(settings.seed, round, number))
                for number, name in enumerate(names)
            },
        )
        return _export(store, stage)


def _annotator(
    settings: RLHFSettings, gold: Gold, gold_range: tuple[float, float] | None, seed: int
) -> SimulatedAnnotator:
    return SimulatedAnnotator(
        gold,
        noise=settings.noise,
        length_bias=settings.length_bias,
        position_bias=settings.position_bias,
        laziness=settings.laziness,
        gold_range=gold_range,
        seed=seed,
    )


def _gold_range(settings: RLHFSettings) -> tuple[float, float] | None:
    """The gold that the ends of a rating's scale stand for; None where nothing is rated."""
    return resolve_reward(settings.gold).bounds if settings.feedback_kind == "rating" else None


def ask_people(
    settings: RLHFSettings, items: Sequence[Item], stage: Stage, *, enough: bool = False
) -> dict[str, Any] | None:
    """Put items before people; what they have answered, or None as long as they are not through.

    Args:
        settings: overlap, guidelines.
        items: what is to be judged; those that the store has already are not added again.
        stage: its store is kept, whatever happens.
        enough: take the answers that are there.

    Raises:
        FeedbackError: ``enough``, and there is not one answer.
    """
    stage.path.mkdir(parents=True, exist_ok=True)
    with FeedbackStore(stage.path / STORE, create=True) as store:
        with store.transaction():
            store.configure(overlap=settings.overlap, seed=settings.seed)
            if settings.guidelines is not None:
                store.set_guidelines(Path(settings.guidelines).read_text(encoding="utf-8"))
            store.add_items(items)
        progress = store.progress()
        if progress.complete < progress.items and not enough:
            return None
        return _export(store, stage)


def how_to_go_on(folder: LoopFolder, round: int, stage: Stage) -> str:
    """What to do while people are to judge."""
    with FeedbackStore(stage.path / STORE) as store:
        progress = store.progress()
    return (
        f"round {round}: {progress.answers} of {progress.wanted} judgements are in. "
        f"Let people give the others:\n"
        f"  textgen feedback serve {stage.path / STORE}\n"
        f"then go on, with --enough if some are not to come:\n"
        f"  textgen rlhf --resume {folder.path}"
    )


def _export(store: FeedbackStore, stage: Stage) -> dict[str, Any]:
    for earlier in judged_files(stage):
        earlier.unlink()  # of an attempt that ended before it was declared done
    export_judgements(store.judgements(), stage.path)
    said: defaultdict[str, Counter[int | None]] = defaultdict(Counter)
    for judgement in store.judgements():
        if isinstance(judgement.answer, Prefer):
            said[judgement.item.id][judgement.answer.preferred] += 1
    shared = [[counts[0], counts[1], counts[None]] for counts in said.values() if counts.total() > 1]
    return {
        "judgements": sum(isinstance(judgement.answer, (Prefer, Rate)) for judgement in store.judgements()),
        "raw_agreement": raw_agreement(np.array(shared, dtype=np.float64)) if shared else None,
    }


def load_items(stage: Stage) -> list[Item]:
    """What the stage of samples left to be judged."""
    return read_items(stage.path / "items.jsonl")


def judged_files(stage: Stage) -> list[Path]:
    """The files of judgements that a stage of feedback holds."""
    names = ("comparisons.jsonl", "ratings.jsonl", GIVEN)
    return [stage.path / name for name in names if (stage.path / name).is_file()]


# ---------------------------------------------------------------- the gold


def gold_of(settings: RLHFSettings, mdp: TextMDP) -> Gold | None:
    """What simulated annotators go by, as a function of prompt and completion; None where people judge.

    Raises:
        ValueError: there is no such reward, it is dense (asked about growing text), or ratings are asked for and it has
            no bounds, which the ends of their scale stand for.
    """
    if settings.gold is None:
        return None
    try:
        reward = resolve_reward(settings.gold)
    except (ImportError, AttributeError) as error:  # what a mistyped 'module:attr' gives; the message says which
        raise ValueError(f"gold: {error}") from error
    if settings.feedback_kind == "rating" and not (reward.bounds and np.isfinite(reward.bounds).all()):
        raise ValueError(
            f"gold '{reward.name}' has no finite bounds, the gold of the lowest and the highest rating: "
            "give it an attribute bounds = (lowest, highest), or --feedback-kind comparison"
        )
    return gold_reward(reward, [prompt for split in mdp.task.splits.values() for prompt in split])


def best_agreement(settings: RLHFSettings, gold: Gold, judgements: Sequence[Preference]) -> float:
    """The most that a reward model can agree with such annotators: `best_accuracy`, or `best_correlation`."""
    pairs = [one for one in judgements if isinstance(one, Comparison)]
    if pairs:
        return best_accuracy(settings, gold, pairs)
    return best_correlation(settings, gold, [one for one in judgements if isinstance(one, Rating)])


def best_correlation(settings: RLHFSettings, gold: Gold, ratings: Sequence[Rating]) -> float:
    """Spearman's ρ with such annotators' ratings of a judge who knows gold and habits, but not the noise.

    Such a judge ranks the texts by gold and length; ratings are drawn anew, and the mean of 20 draws is taken.
    """
    texts = list(dict.fromkeys((one.prompt, one.completion) for one in ratings))
    golds = {text: gold(*text) for text in texts}
    known = [golds[text] + settings.noise * settings.length_bias * len(text[1].split()) for text in texts]
    annotator = _annotator(settings, lambda prompt, text: golds[prompt, text], _gold_range(settings), seed=0)
    tasks = [Task("", "rating", prompt, (text,), SCALE, 0) for prompt, text in texts]

    def rate(task: Task) -> float:
        answer = annotator.answer(task)
        assert isinstance(answer, Rate)
        return answer.rating

    return float(np.mean([spearman(known, [rate(task) for task in tasks]) for _ in range(_DRAWS)]))


def best_accuracy(settings: RLHFSettings, gold: Gold, comparisons: Sequence[Comparison]) -> float:
    """The accuracy on such annotators' comparisons that nobody can exceed in expectation, knowing gold and habits.

    The mean over pairs of ``max(p, 1 − p)``, where ``p`` is the probability that the first text is preferred, as
    `SimulatedAnnotator` states it, averaged over the two orders in which a pair is shown: the Bayes accuracy.
    """

    def accuracy(pair: Comparison) -> float:
        golds = [gold(pair.prompt, text) for text in pair.completions]
        words = [len(text.split()) for text in pair.completions]
        gap = golds[0] - golds[1]
        worth = settings.length_bias * (words[0] - words[1])
        if gap:
            worth += gap / settings.noise if settings.noise else math.copysign(math.inf, gap)
        read = (_sigmoid(worth + settings.position_bias) + _sigmoid(worth - settings.position_bias)) / 2
        first = settings.laziness / 2 + (1 - settings.laziness) * read
        return max(first, 1 - first)

    return float(np.mean([accuracy(pair) for pair in comparisons]))


def accuracy_from_agreement(raw: float) -> float:
    """The most that the accuracy on single judgements can be, from how often two annotators agree on a pair.

    With ``p`` the share of annotators who prefer a pair's first text, two agree with probability ``p² + (1 − p)²``, and
    the best guess is right with ``max(p, 1 − p)``; so, by Jensen, the mean of the latter is at most
    ``(1 + √(2·raw − 1)) / 2``.
    """
    return (1 + math.sqrt(max(0.0, 2 * raw - 1))) / 2


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))  # no overflow


def seed_of(*numbers: int) -> int:
    """A seed of its own for each tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
