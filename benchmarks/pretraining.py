"""Pretraining with human preferences where the truth is known: how often bad text is written, and at what divergence.

    python -m benchmarks.pretraining --seeds 3 --json benchmarks/results/pretraining.json

The corpus is drawn from a known chain p over texts of six words (`textgen_env.tasks.markov`; the first two words are
uniform). A text is bad where a certain pair of words stands in it, by `reward_models.BannedWords`; almost half of the
corpus is. Six small transformers learn it with the six objectives of Korbak et al. 2023, each from the same corpus,
initial weights and number of optimiser steps. All texts of six words can be written down, so nothing is sampled:

- *bad rate*: the probability that the model writes a bad text; conditional training is asked for good ones.
- *KL(q‖p)*: from the model q to the truth, nats a text. A model that writes bad texts at the rate b is at least
  ``b log(b / b_p) + (1 − b) log((1 − b) / (1 − b_p))`` away, b_p being the truth's own rate (the data-processing
  inequality; p tilted on the two kinds reaches it): *excess* is what it lies beyond that.
- *KL(p_good‖q)*: from the truth conditioned on good to the model: what good texts cost it.

Padding, EOS and control tokens are forbidden while the six words are written, as a task's mask would.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.policy import TextPolicy
from agents.pretraining.preference import GOOD_TOKEN, ObjectiveConfig
from agents.pretraining.run import Pretrained, pretrain
from agents.pretraining.settings import PretrainConfig, PretrainSettings
from benchmarks.learning import over_seeds
from benchmarks.measure import circumstances
from reward_models import BannedWords
from textgen_env.tasks.markov import FIRST_WORD_ID, Array, MarkovOracle, chain_words, markov_oracle, text_of
from textgen_env.tokenizer import word_tokenizer

WORDS, LENGTH = 6, 6
CHAIN: dict[str, Any] = {"words": WORDS, "steps": LENGTH - 2, "sharpness": 1.0, "seed": 3}
BAD = "e d"
SIZE = {"layers": 1, "width": 64, "heads": 4}
FIT: dict[str, Any] = {"batch_size": 8, "learning_rate": 4e-3}
BLOCK_SIZE = 64
TEXTS, STEPS = 8000, 300
OBJECTIVES: dict[str, dict[str, Any]] = {
    "likelihood": {},
    "filtering": {"threshold": 0.5},
    "conditional": {"threshold": 0.5},
    "unlikelihood": {"threshold": 0.5, "unlikelihood_weight": 1.0},
    "reward_weighted": {"beta": 0.25},
    "advantage_weighted": {"beta": 0.25},
}
_ROWS = 4096


@dataclass(frozen=True)
class Figures:
    """A model against the truth, exactly; nats a text."""

    bad_rate: float
    kl_q_p: float
    excess: float
    """Of KL(q‖p) over the least that a model of this bad rate can have."""
    kl_good_q: float


@dataclass(frozen=True)
class Truth:
    """All W**T texts: their probabilities, and which are bad."""

    log_probs_X: Array
    bad_X: Array

    @property
    def bad_rate(self) -> float:
        """The chain's own."""
        return float(np.exp(self.log_probs_X) @ self.bad_X)

    def figures(self, log_q_X: Array) -> Figures:
        """Of a distribution over the texts, in their order."""
        q_X, p_X = np.exp(log_q_X), np.exp(self.log_probs_X)
        rate, kl = float(q_X @ self.bad_X), float(q_X @ (log_q_X - self.log_probs_X))
        good_X = p_X * (1 - self.bad_X) / (1 - self.bad_rate)
        kept = good_X > 0
        kl_good = float(good_X[kept] @ (np.log(good_X[kept]) - log_q_X[kept]))
        return Figures(rate, kl, kl - least_divergence(rate, self.bad_rate), kl_good)


def least_divergence(rate: float, bad_rate: float) -> float:
    """The least KL(q‖p) of a q that writes bad texts at ``rate``, where p does at ``bad_rate``; nats."""
    pairs = ((rate, bad_rate), (1 - rate, 1 - bad_rate))
    return sum(mine * math.log(mine / its) for mine, its in pairs if mine > 0)


def all_texts(length: int) -> Array:
    """(W**length, length) token ids, in lexical order."""
    return np.array(list(itertools.product(range(FIRST_WORD_ID, FIRST_WORD_ID + WORDS), repeat=length)))


def truth(oracle: MarkovOracle) -> Truth:
    """The chain on all texts."""
    words_XT = all_texts(LENGTH) - FIRST_WORD_ID
    steps = oracle.log_probs_WWW[words_XT[:, :-2], words_XT[:, 1:-1], words_XT[:, 2:]]
    texts = [text_of(ids) for ids in all_texts(LENGTH)]
    return Truth(steps.sum(-1) - 2 * math.log(WORDS), 1 - np.array(BannedWords([BAD])(completions=texts)))


def corpus(oracle: MarkovOracle, texts: int, seed: int) -> list[str]:
    """Texts of the chain, repeats kept, in random order."""
    rng = np.random.default_rng([seed, 7])
    contexts = list(itertools.product(range(FIRST_WORD_ID, FIRST_WORD_ID + WORDS), repeat=2))
    counts = rng.multinomial(texts, [1 / len(contexts)] * len(contexts))
    drawn = [
        text_of([*context, *ids])
        for context, count in zip(contexts, counts, strict=True)
        for ids in oracle.sample(context, int(count), rng)
    ]
    return [drawn[index] for index in rng.permutation(len(drawn))]


@torch.no_grad()
def log_probs_of_texts(policy: TextPolicy, prompt: list[int]) -> Array:
    """Shape (W**T,): log q of every text after a prompt, words alone being allowed."""
    prefixes = torch.from_numpy(all_texts(LENGTH - 1))
    found = []
    for start in range(0, len(prefixes), _ROWS):
        words_BT = prefixes[start : start + _ROWS]
        batch = len(words_BT)
        input_ids = torch.cat([torch.tensor(prompt).expand(batch, -1), words_BT], -1)
        width = input_ids.shape[1]
        select = (torch.arange(batch)[:, None] * width + torch.arange(len(prompt) - 1, width)).flatten()
        logits_NV, _ = policy(input_ids, torch.arange(width).expand(batch, -1), select)
        words_NW = logits_NV[:, FIRST_WORD_ID : FIRST_WORD_ID + WORDS].double().log_softmax(-1)
        steps_BTW = words_NW.reshape(batch, LENGTH, WORDS)
        taken_B = steps_BTW[:, :-1].gather(-1, words_BT[..., None] - FIRST_WORD_ID).sum((1, 2))
        found.append(taken_B[:, None] + steps_BTW[:, -1])
    return torch.cat(found).flatten().numpy()


def learn(objective: str, texts: list[str], seed: int, steps: int) -> Pretrained:
    """A model of the corpus."""
    reward = None if objective == "likelihood" else BannedWords([BAD])
    settings = PretrainSettings(
        tokenizer=word_tokenizer(chain_words(WORDS)),
        block_size=BLOCK_SIZE,
        validation_share=0.0,
        seed=seed,
        device="cpu",
        **SIZE,
    )
    options = ObjectiveConfig(objective, reward, drop_control=0.01, **OBJECTIVES[objective])  # type: ignore[arg-type]
    kept = len(texts)
    if objective == "filtering":
        kept = int(sum(BannedWords([BAD])(completions=texts)))  # type: ignore[arg-type]
    a_block = BLOCK_SIZE // (LENGTH + (2 if objective == "conditional" else 1))
    epochs = steps * FIT["batch_size"] * a_block / kept
    return pretrain(texts, settings, PretrainConfig(epochs=epochs, **FIT), options)


def one_seed(seed: int, texts: int, steps: int) -> dict[str, Any]:
    """Every objective's figures, and what learning cost."""
    oracle = markov_oracle(**CHAIN)
    known, read = truth(oracle), corpus(oracle, texts, seed)
    found: dict[str, Any] = {"seed": seed}
    for objective in OBJECTIVES:
        began = time.process_time()
        learned = learn(objective, read, seed, steps)
        seconds = time.process_time() - began
        prompt = learned.tokenizer.encode_prompt("").tolist()
        if learned.prompt:
            prompt.append(learned.tokenizer.hf.convert_tokens_to_ids(GOOD_TOKEN))
        figures = known.figures(log_probs_of_texts(learned.policy, prompt))
        found[objective] = {**asdict(figures), "cpu_seconds": seconds}
    return found


def summary(results: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Each objective's figures as (mean over seeds, half-width)."""
    return {
        objective: {key: over_seeds([result[objective][key] for result in results]) for key in results[0][objective]}
        for objective in OBJECTIVES
    }


def main(argv: list[str] | None = None) -> int:
    """Run the seeds; print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.pretraining", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, 0 to n - 1 (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=TEXTS, help="of the corpus (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    found = circumstances("cpu")
    results: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        results.append(result := one_seed(seed, args.texts, args.steps))
        for objective in OBJECTIVES:
            figures = result[objective]
            print(
                f"seed {seed} {objective:18} bad {figures['bad_rate']:.4f}  KL(q‖p) {figures['kl_q_p']:.3f}  "
                f"excess {figures['excess']:.3f}  KL(p_good‖q) {figures['kl_good_q']:.3f}  "
                f"{figures['cpu_seconds']:.0f} CPU s",
                flush=True,
            )
        if args.json:  # after every seed: a run that is cut short keeps what it measured
            options = {key: value for key, value in vars(args).items() if key != "json"}
            setting = {"chain": CHAIN, "bad": BAD, "size": SIZE, "fit": FIT, "objectives": OBJECTIVES}
            report = {
                "options": {**options, **setting},
                "circumstances": found,
                "truth": {"bad_rate": truth(markov_oracle(**CHAIN)).bad_rate},
                "summary": summary(results),
                "seeds": results,
            }
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for objective, figures in summary(results).items():
        shown = "  ".join(f"{key} {mean:.4f} ± {half:.4f}" for key, (mean, half) in figures.items())
        print(f"{objective:18} {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
