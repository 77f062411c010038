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
from agents.rlhf_folder import LoopFolder, Stage
from agents.rlhf_settings import RLHFSettings
from reward_models.feedback import (
    FeedbackStore,
    Item,
    Prefer,
    SimulatedAnnotator,
    answer_all,
    export_judgements,
    gold_reward,
    read_items,
)
from reward_models.feedback.agreement import raw_agreement
from reward_models.feedback.annotators import Gold
from reward_models.preference import Comparison
from textgen_env import TextMDP
from textgen_env.reward_registry import resolve_reward

STORE = "feedback.db"
COMPARISONS = "comparisons.jsonl"


def write_pairs(
    agent: TextAlgorithm, mdp: TextMDP, count: int, *, source: str, seed: int
) -> tuple[list[Item], list[tuple[str, str]]]:
    """Let a policy write two completions of each of ``count`` prompts, drawn epoch by epoch.

    Args:
        agent: writes.
        mdp: whose prompts are asked; its reward is not looked at.
        count: how many pairs.
        source: what the policy is called in the items; never shown.
        seed: draws prompts and completions.

    Returns:
        The items, without those pairs whose two texts are the same, and all (prompt, completion).

    Raises:
        ValueError: the two texts are the same everywhere.
    """
    generator = np.random.default_rng(seed)
    prompts: list[int] = []
    while len(prompts) < count:
        prompts += generator.permutation(len(mdp.prompts)).tolist()
    played = collector_on(agent, mdp, 2 * count, seed).collect(
        2 * count, samples_per_prompt=2, prompt_indices=prompts[:count]
    )
    assert played is not None  # nobody abandons it
    texts = [(info["prompt"], info["text"]) for info in played.infos]
    items = [
        Item.of(prompt, [first, second], sources=[source, source])
        for (prompt, first), (_, second) in zip(texts[::2], texts[1::2], strict=True)
        if first != second
    ]
    if not items:
        raise ValueError(
            f"the policy wrote the same text twice for each of {count} prompts: there is nothing to compare. "
            "Is the model one that can write, and the cap on new tokens more than a few?"
        )
    return items, texts


def simulate(settings: RLHFSettings, gold: Gold, round: int, items: Sequence[Item], stage: Stage) -> dict[str, Any]:
    """Let simulated annotators judge all items; what was left of an earlier attempt is thrown away."""
    stage.clear()
    with FeedbackStore(stage.path / STORE, create=True) as store:
        store.configure(overlap=settings.overlap, seed=settings.seed)
        store.add_items(items)
        names = [f"annotator-{number}" for number in range(1, settings.overlap + 1)]
        answer_all(
            store,
            {
                name: SimulatedAnnotator(
                    gold,
                    noise=settings.noise,
                    length_bias=settings.length_bias,
                    position_bias=settings.position_bias,
                    laziness=settings.laziness,
                    seed=seed_of(settings.seed, round, number),
                )
                for number, name in enumerate(names)
            },
        )
        return _export(store, stage)


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
    (stage.path / COMPARISONS).unlink(missing_ok=True)  # of an attempt that ended before it was declared done
    export_judgements(store.judgements(), stage.path)
    said: defaultdict[str, Counter[int | None]] = defaultdict(Counter)
    for judgement in store.judgements():
        if isinstance(judgement.answer, Prefer):
            said[judgement.item.id][judgement.answer.preferred] += 1
    shared = [[counts[0], counts[1], counts[None]] for counts in said.values() if counts.total() > 1]
    return {
        "pairs": len(store.items()),
        "judgements": sum(counts.total() for counts in said.values()),
        "raw_agreement": raw_agreement(np.array(shared, dtype=np.float64)) if shared else None,
    }


def load_items(stage: Stage) -> list[Item]:
    """The pairs that the stage of samples wrote."""
    return read_items(stage.path / "items.jsonl")


# ---------------------------------------------------------------- the gold


def gold_of(settings: RLHFSettings, mdp: TextMDP) -> Gold | None:
    """What simulated annotators go by, as a function of prompt and completion; None where people judge.

    Raises:
        ValueError: there is no such reward, or it is dense (asked about growing text).
    """
    if settings.gold is None:
        return None
    try:
        reward = resolve_reward(settings.gold)
    except (ImportError, AttributeError) as error:  # what a mistyped 'module:attr' gives; the message says which
        raise ValueError(f"gold: {error}") from error
    return gold_reward(reward, [prompt for split in mdp.task.splits.values() for prompt in split])


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
