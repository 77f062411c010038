"""Learning claims: does PPO improve the text of a warm-started model on prompts it never saw?

    python -m benchmarks.learning news_summary --seeds 5 --json results.json
    python -m benchmarks.learning endings --data val.jsonl --model stories260K --seeds 5 --json results.json

Each seed trains its own agent; every seed is reported, whatever came out. The interval over seeds is Student's
t; a seed's own interval is the bootstrap over held-out prompts, of the paired difference after − before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import PPO, PPOConfig, SupervisedConfig, supervised_fit
from agents.evaluation import Evaluation, evaluate, on_split
from agents.models import small_gpt2
from benchmarks.measure import circumstances
from textgen_env import TextGenVectorEnv, TextMDP, TextTask

SETTINGS = PPOConfig(
    learning_rate=3e-4,
    samples_per_prompt=8,
    episodes_per_rollout=128,
    epochs=2,
    num_envs=64,
)
"""The same for both experiments, and what `make demo` uses."""


@dataclass(frozen=True)
class Gain:
    """Before, after and their paired difference on the same held-out prompts."""

    before: float
    after: float
    gain: float
    gain_interval: tuple[float, float]


@dataclass(frozen=True)
class SeedResult:
    """One seed's run."""

    seed: int
    sampled: Gain
    greedy: Gain
    kl_per_sequence: float
    kl_interval: tuple[float, float]
    entropy_before: float
    entropy_after: float
    length_before: float
    length_after: float
    tokens: int
    episodes: int
    warm_start_cpu_seconds: float
    ppo_cpu_seconds: float
    examples: list[dict[str, str]]


def news_summary(seed: int, args: argparse.Namespace) -> SeedResult:
    """A two-layer GPT-2 from scratch: warm start on the task's headlines, then PPO against ROUGE-L."""
    train = TextMDP("textgen_env.tasks:news_summary", "rouge_l", max_prompt_tokens=160, max_new_tokens=24)
    held_out = on_split(train, "validation")
    model = small_gpt2(train.tokenizer, positions=184, layers=2, width=128, heads=4)
    settings = dataclasses.replace(SETTINGS, precision=args.precision)
    agent = PPO(model, TextGenVectorEnv(settings.num_envs, mdp=train), settings, seed=seed)
    began = time.process_time()
    supervised_fit(agent.policy, train, SupervisedConfig(epochs=args.warm_start_epochs), seed=seed)
    agent.refresh_reference()
    return _learn(agent, held_out, args, time.process_time() - began)


def endings(seed: int, args: argparse.Namespace) -> SeedResult:
    """A pretrained LM as it is, on four story sentences -> the fifth; no warm start."""
    task = TextTask.from_jsonl(args.data, prompt_field="context", reference_field="ending", fractions=(0.8, 0.2, 0.0))
    train = TextMDP(task, "rouge_l", args.model, max_new_tokens=40)
    held_out = on_split(train, "validation")
    # ROUGE-L of free story endings moves between .05 and .15: a nat must cost accordingly less than a headline's.
    settings = dataclasses.replace(SETTINGS, kl_coef_per_sequence=0.002, learning_rate=5e-4, precision=args.precision)
    agent = PPO(args.model, TextGenVectorEnv(settings.num_envs, mdp=train), settings, seed=seed)
    return _learn(agent, held_out, args, 0.0)


EXPERIMENTS: dict[str, Callable[[int, argparse.Namespace], SeedResult]] = {
    "news_summary": news_summary,
    "endings": endings,
}


def _learn(agent: PPO, held_out: TextMDP, args: argparse.Namespace, warm_start_seconds: float) -> SeedResult:
    def measure() -> tuple[Evaluation, Evaluation]:
        return (
            evaluate(agent, held_out, num_prompts=args.prompts, seed=1),
            evaluate(agent, held_out, num_prompts=args.prompts, seed=1, greedy=True),
        )

    before = measure()
    began = time.process_time()
    agent.learn(args.tokens)
    seconds = time.process_time() - began
    after = measure()
    assert after[0].kl_per_sequence is not None
    assert after[0].kl_interval is not None
    return SeedResult(
        seed=int(agent.seed or 0),
        sampled=_gain(before[0], after[0]),
        greedy=_gain(before[1], after[1]),
        kl_per_sequence=after[0].kl_per_sequence,
        kl_interval=after[0].kl_interval,
        entropy_before=before[0].entropy,
        entropy_after=after[0].entropy,
        length_before=before[0].mean_length,
        length_after=after[0].mean_length,
        tokens=agent.num_timesteps,
        episodes=agent._episode_num,
        warm_start_cpu_seconds=warm_start_seconds,
        ppo_cpu_seconds=seconds,
        examples=[
            {"prompt": a.prompt, "before": b.completion, "after": a.completion, "reference": a.reference or ""}
            for b, a in list(zip(before[1].samples, after[1].samples, strict=True))[:3]
        ],
    )


def _gain(before: Evaluation, after: Evaluation) -> Gain:
    differences = np.array(after.scores) - np.array(before.scores)
    generator = np.random.default_rng(0)
    means = generator.choice(differences, (2000, len(differences))).mean(-1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Gain(before.mean, after.mean, float(differences.mean()), (float(low), float(high)))


def _published(result: SeedResult, *, with_texts: bool) -> dict[str, Any]:
    figures = asdict(result)
    if not with_texts:
        del figures["examples"]
    return figures


def over_seeds(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and the half-width of Student's 95 % interval (NaN for one seed)."""
    quantiles = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
    spread = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(quantiles.get(len(values), 1.96) * spread)


def summary(results: list[SeedResult]) -> dict[str, tuple[float, float]]:
    """Each figure's mean over seeds, and half-width."""
    return {
        f"{way}_{what}": over_seeds([getattr(getattr(result, way), what) for result in results])
        for way in ("sampled", "greedy")
        for what in ("before", "after", "gain")
    } | {"kl_per_sequence": over_seeds([result.kl_per_sequence for result in results])}


def main(argv: list[str] | None = None) -> int:
    """Run one experiment over seeds; print a line a seed and a summary."""
    parser = argparse.ArgumentParser(prog="benchmarks.learning", description=__doc__.split("\n\n")[0])
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 to n - 1 (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=250_000, help="PPO's tokens a seed (default: %(default)s)")
    parser.add_argument("--warm-start-epochs", type=float, default=2.0, help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=400, help="held-out prompts (default: %(default)s)")
    parser.add_argument("--data", help="endings: a JSON-lines file with the fields context and ending")
    parser.add_argument("--model", help="endings: the pretrained model's folder")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(argv)
    if args.experiment == "endings" and not (args.data and args.model):
        parser.error("endings needs --data and --model")
    torch.set_num_threads(args.threads)
    found = circumstances("cpu")
    results: list[SeedResult] = []
    for seed in range(args.seeds):
        result = EXPERIMENTS[args.experiment](seed, args)
        results.append(result)
        low, high = result.sampled.gain_interval
        print(
            f"seed {seed}: sampled {result.sampled.before:.3f} -> {result.sampled.after:.3f} "
            f"({result.sampled.gain:+.3f} [{low:.3f}, {high:.3f}]), "
            f"greedy {result.greedy.before:.3f} -> {result.greedy.after:.3f}, KL {result.kl_per_sequence:.2f}, "
            f"{result.tokens} tokens, {result.warm_start_cpu_seconds:.0f} + {result.ppo_cpu_seconds:.0f} CPU s",
            flush=True,
        )
        if args.json:  # after every seed: a run that is cut short keeps what it measured
            args.json.parent.mkdir(parents=True, exist_ok=True)
            options = {key: value for key, value in vars(args).items() if key not in ("json", "data", "model")}
            report = {
                "experiment": args.experiment,
                "options": options,
                "circumstances": found,
                "summary": summary(results),
                # A user's data is not written down: only a generated task's texts are.
                "seeds": [_published(result, with_texts=not args.data) for result in results],
            }
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    for name, (mean, half) in summary(results).items():
        print(f"{name:18} {mean:8.3f} ± {half:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
