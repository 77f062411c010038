"""What a loop's policy is worth on held-out prompts: the reward model's score, gold where it is known, KL, variety."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.base import TextAlgorithm
from agents.evaluation import bootstrap_interval, evaluate
from agents.rlhf.folder import Stage, read_lines, write_lines
from agents.rlhf.reward import Scorer
from agents.rlhf.settings import held_out_split, unjudged
from reward_models.feedback.annotators import Gold
from textgen_env import TextMDP

TEXTS = "samples.jsonl"
_NUM_SHOWN = 3


def measure_policy(
    agent: TextAlgorithm,
    mdp: TextMDP,
    stage: Stage,
    *,
    reward: Scorer | None,
    gold: Gold | None,
    num_prompts: int,
    seed: int,
) -> dict[str, Any]:
    """Sample a completion of each held-out prompt: the texts with their scores go into the stage's folder.

    Args:
        agent: writes; the same seed gives all the same prompts.
        mdp: the rules, on any split.
        stage: its folder gets ``samples.jsonl``.
        reward: the reward model; None before there is one.
        gold: what simulated annotators go by; None where people judge.
        num_prompts: at most so many.
        seed: draws prompts and completions.

    Returns:
        The figures. Means come with 95 % intervals, by the bootstrap over prompts; the KL, in nats a completion, with
        the bootstrap's standard error too.
    """
    rules = mdp.with_reward(reward or unjudged).on_split(held_out_split(mdp))
    one = evaluate(agent, rules, num_prompts=num_prompts, seed=seed)
    lines: list[dict[str, Any]] = [{"prompt": text.prompt, "completion": text.completion} for text in one.samples]
    for line, text in zip(lines, one.samples, strict=True):
        if reward is not None:
            line["reward"] = text.score
        if gold is not None:
            line["gold"] = gold(text.prompt, text.completion)
    write_lines(stage.path / TEXTS, lines)
    interval = one.kl_interval
    scores = {name: estimate([line[name] for line in lines]) for name in ("reward", "gold") if name in lines[0]}
    return scores | {
        "prompts": one.num_prompts,
        "split": one.split,
        "kl": one.kl_per_sequence,
        "kl_interval": interval,
        # A 95 % interval reaches 1.96 of them to either side.
        "kl_standard_error": None if interval is None else (interval[1] - interval[0]) / 3.92,
        "distinct_1": one.distinct_1,
        "distinct_2": one.distinct_2,
        "length": one.mean_length,
        "clipped_ratio": one.clipped_ratio,
        "entropy": one.entropy,
        "texts": lines[:_NUM_SHOWN],
    }


def changes(start: Path, now: Path, reward: Scorer) -> dict[str, Any]:
    """Gains over the texts that the start wrote for the same prompts, paired, in the reward model's eyes and in gold.

    Args:
        start: the start's ``samples.jsonl``.
        now: the policy's, which ``reward`` has scored.
        reward: scores those of the start.
    """
    before, after = list(read_lines(start)), list(read_lines(now))
    scores = reward([line["completion"] for line in before], [line["prompt"] for line in before])
    found = {
        "reward_at_start": estimate(scores),
        "reward_gain": estimate([line["reward"] - score for line, score in zip(after, scores, strict=True)]),
    }
    if "gold" in before[0]:
        found["gold_gain"] = estimate([b["gold"] - a["gold"] for a, b in zip(before, after, strict=True)])
    return found


def estimate(values: Sequence[float]) -> Mapping[str, Any]:
    """A mean and its 95 % interval, by the percentile bootstrap."""
    values_N = np.asarray(values, dtype=np.float64)
    return {"mean": float(values_N.mean()), "interval": bootstrap_interval(values_N, np.random.default_rng(0))}
