"""Does the whole loop of human feedback raise what the annotators go by, which the learner never sees?

    python -m benchmarks.rlhf --model stories260K --openings openings.jsonl --lexicon lexicon.tsv --output runs

A pretrained 260,032-parameter language model goes on with the first sentences of stories. Simulated annotators prefer
the continuation whose sentiment is brighter by VADER's lexicon and rules, with noise; two rounds of `agents.rlhf`. Each
seed draws its own samples, labels, reward model, policy and held-out openings, and all are reported. Intervals
of a seed are 95 %, by the bootstrap over openings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from agents import PPOConfig
from agents.rlhf.loop import rlhf
from agents.rlhf.settings import RLHFSettings
from benchmarks.learning import over_seeds
from benchmarks.measure import circumstances
from reward_models import LexiconSentiment
from reward_models.preference import FitConfig

CONFIG = PPOConfig(
    learning_rate=5e-4, samples_per_prompt=8, episodes_per_rollout=128, epochs=2, num_envs=64, kl_coef_per_sequence=0.2
)
FIT = FitConfig(epochs=1.5, batch_size=16, evaluations=3)
MOST_KL = 10.0
"""Nats a completion within which the gain counts."""


def run(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One loop, resumed where an earlier attempt was cut short; the line that is written."""
    folder = args.output / f"seed-{seed}"
    settings = RLHFSettings(
        prompts=args.openings,
        model=args.model,
        gold=LexiconSentiment(args.lexicon),
        noise=0.1,
        max_new_tokens=32,
        comparisons=400,
        tokens_per_round=24_000,
        eval_prompts=250,
        seed=seed,
        device="cpu",
        output=folder,
    )
    found = rlhf(settings, CONFIG, FIT, resume=(folder / "config.json").is_file())
    seconds = json.loads((folder / "result.json").read_text(encoding="utf-8"))["seconds"]
    return {
        "seed": seed,
        "start": found.start,
        "rounds": found.rounds,
        "cpu_seconds": sum(stage["cpu"] for stage in seconds.values()),
    }


def clear(line: Mapping[str, Any]) -> bool:
    """Whether gold's interval at the end lies above that at the start, at a KL within `MOST_KL`."""
    end = line["rounds"][-1]["evaluation"]
    return bool(end["gold"]["interval"][0] > line["start"]["gold"]["interval"][1] and end["kl"] <= MOST_KL)


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, a row a seed and the mean over seeds ± Student's 95 %."""
    rounds = len(lines[0]["rounds"])
    head = ["seed", "gold, start", *(f"after round {n + 1}" for n in range(rounds)), "change [95 %]", "KL ± s.e."]
    head += [f"accuracy / ceiling, round {n + 1}" for n in range(rounds)]
    head += ["distinct pairs, start → end", "CPU s"]
    rows = [[f"{cell}" for cell in _row(line)] for line in lines]
    if len(lines) > 1:
        rows.append(_mean(lines, rounds))
    body = [head, ["---"] * len(head), *rows]
    passed = sum(map(clear, lines))
    verdict = (
        f"Gold's interval at the end above that at the start, at KL ≤ {MOST_KL:g}: {passed} of {len(lines)} seeds."
    )
    return "\n".join([*(f"| {' | '.join(row)} |" for row in body), "", verdict])


def _row(line: Mapping[str, Any]) -> list[str]:
    evaluations = [line["start"], *(one["evaluation"] for one in line["rounds"])]
    models = [one["reward_model"] for one in line["rounds"]]
    start, end = evaluations[0], evaluations[-1]
    return [
        str(line["seed"]),
        *(_interval(one["gold"]) for one in evaluations),
        _interval(end["gold_gain"]),
        f"{end['kl']:.2f} ± {end['kl_standard_error']:.2f}",
        *(f"{one['accuracy']:.3f} / {one['best_accuracy']:.3f}" for one in models),
        f"{start['distinct_2']:.2f} → {end['distinct_2']:.2f}",
        f"{line['cpu_seconds']:.0f}",
    ]


def _mean(lines: Sequence[Mapping[str, Any]], rounds: int) -> list[str]:
    def over(values: list[float], digits: int = 3) -> str:
        mean, half = over_seeds(values)
        return f"{mean:.{digits}f} ± {half:.{digits}f}"

    after = [[line["rounds"][n] for line in lines] for n in range(rounds)]
    ends = [one["evaluation"] for one in after[-1]]
    return [
        "**all**",
        over([line["start"]["gold"]["mean"] for line in lines]),
        *(over([one["evaluation"]["gold"]["mean"] for one in found]) for found in after),
        over([one["gold_gain"]["mean"] for one in ends]),
        over([one["kl"] for one in ends], 2),
        *(
            f"{over([one['reward_model']['accuracy'] for one in found])} / "
            f"{over_seeds([one['reward_model']['best_accuracy'] for one in found])[0]:.3f}"
            for found in after
        ),
        "",
        "",
    ]


def _interval(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['mean']:.3f} [{low:.3f}, {high:.3f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds, go on with those begun, and report all."""
    parser = argparse.ArgumentParser(prog="benchmarks.rlhf", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, help="a pretrained language model's folder")
    parser.add_argument("--openings", type=Path, required=True, help="a .jsonl file with the field 'prompt'")
    parser.add_argument("--lexicon", type=Path, required=True, help="word<TAB>valence a line, VADER's own format")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 to n - 1 (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="a folder, for a folder a seed")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()  # the head of a reward model is fresh, and is meant to be
    transformers_logging.disable_progress_bar()
    lines = []
    for seed in range(args.seeds):
        lines.append(run(seed, args))
        print(report(lines), flush=True)
        if args.json is not None:
            options = {"algorithm": dataclasses.asdict(CONFIG), "fit": dataclasses.asdict(FIT)}
            written = {"seeds": lines, "options": options, "circumstances": circumstances("cpu")}
            args.json.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
