"""Does training against a discriminator bring a policy nearer to the corpus than its controls come?

    python -m benchmarks.adversarial --seeds 5 --json benchmarks/results/adversarial.json

The task is MatchCorpus: the corpus is drawn from a known Markov chain p, so the divergence of a policy q from it is
no proxy. Every policy has the same architecture, too small to be right everywhere. The contestants, each seed anew:

- *supervised*: maximum likelihood of the corpus, read at several temperatures. "best" is the one with the lowest
  KL(q‖p) on the very prompts reported on: more than a user could know.
- *constant*: from the temperature that is best on the validation prompts, REINFORCE with a constant reward and the KL
  to where it started.
- *adversarial*: the same, the discriminator in place of the constant.

Both divergences are sums over the places of a text of the exact divergence between the two next-word distributions
(the chain rule), averaged over texts: the policy's own for KL(q‖p), the chain's for KL(p‖q). Held-out prompts.

Measured, five seeds: the converged model at its best temperature is *not* beaten (`results/adversarial.json`: KL(q‖p)
.40 ± .16 nats worse, 0 of 5 seeds). After a warm start of 2 epochs (`--warm-start-epochs 2`,
`results/adversarial_short.json`) the adversary is .22 ± .24 nats better than temperatures down to 0.6, in 4 of 5 seeds;
but there the best lies at the sweep's end: with 0.5 in it, as in the sweep below, the difference is within noise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from agents import REINFORCE, REINFORCEConfig, SupervisedConfig, small_gpt2, supervised_fit
from agents.adversarial import DiscriminatorCallback, corpus
from agents.evaluation import on_split
from benchmarks.learning import over_seeds
from benchmarks.markov import divergence, next_word, written
from benchmarks.measure import circumstances
from reward_models.discriminator import Discriminator, DiscriminatorConfig
from textgen_env import TextGenVectorEnv, TextMDP, TextTokenizer
from textgen_env.tasks.match_corpus import MarkovOracle, markov_oracle, match_corpus
from textgen_env.tokenizer import word_tokenizer

TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
POLICY = {"layers": 1, "width": 8, "heads": 2}
JUDGE = {"layers": 1, "width": 32, "heads": 4}
AGENT = REINFORCEConfig(
    learning_rate=1.5e-3,
    samples_per_prompt=4,
    episodes_per_rollout=256,
    num_envs=128,
    kl_coef_per_sequence=0.05,
)
DISCRIMINATOR = DiscriminatorConfig(learning_rate=5e-3, weight_decay=0.01, batch_size=64)


@dataclass(frozen=True)
class Figures:
    """A policy against the chain, nats a completion."""

    kl_q_p: float
    """KL(q‖p), over the policy's own texts."""
    kl_p_q: float
    """KL(p‖q), over the chain's."""
    nll: float
    """E_q[−log p]."""
    entropy: float
    """Of q; the chain's is the optimum."""
    distinct: float
    """Share of the completions that differ from all others of their prompt."""


def measure(agent: REINFORCE, mdp: TextMDP, oracle: MarkovOracle, *, samples: int, seed: int = 1) -> Figures:
    """The figures of an agent at its temperature, on the prompts of ``mdp``."""
    texts = written(agent, mdp, samples, seed)
    log_q, log_p = next_word(agent.policy, texts, oracle.log_probs_WWW)
    kl_q_p = float(divergence(log_q, log_p).mean())
    entropy = float(-(log_q.exp() * log_q).sum((1, 2)).mean())
    real = torch.tensor([[*prompt, *completion] for pairs in corpus(mdp) for prompt, completion in pairs])
    log_q, log_p = next_word(agent.policy, real, oracle.log_probs_WWW)
    kl_p_q = float(divergence(log_p, log_q).mean())
    distinct = len({tuple(ids) for ids in texts.tolist()}) / samples
    return Figures(kl_q_p, kl_p_q, kl_q_p + entropy, entropy, distinct)


def constant(completions: list[str], **_: Any) -> list[float]:
    """The control: every text is worth the same."""
    return [1.0] * len(completions)


def one_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Every contestant's figures, and what they cost."""
    oracle, task = markov_oracle(), match_corpus(mask=True)
    tokenizer = TextTokenizer(word_tokenizer(task.vocabulary or ()))
    positions = 2 + oracle.steps
    judge = Discriminator(tokenizer, small_gpt2(tokenizer, positions=positions, **JUDGE), DISCRIMINATOR, seed=seed)
    # The corpus and the chain are the same in every seed; weights, batches and samples are the seed's own.
    found: dict[str, Any] = {"seed": seed, "entropy_of_the_chain": float(oracle.entropy().mean())}

    def learner(reward: Callable[..., Any]) -> tuple[REINFORCE, TextMDP]:
        mdp = TextMDP(task, reward, tokenizer)
        model = small_gpt2(tokenizer, positions=positions, **POLICY)
        return REINFORCE(model, TextGenVectorEnv(AGENT.num_envs, mdp=mdp), AGENT, seed=seed), mdp

    start, mdp = learner(constant)
    began = time.process_time()
    warm_start = SupervisedConfig(epochs=args.warm_start_epochs, batch_size=64, learning_rate=0.01)
    supervised_fit(start.policy, mdp, warm_start, seed=seed)
    found["supervised_cpu_seconds"] = time.process_time() - began
    test, validation = on_split(mdp, "test"), on_split(mdp, "validation")
    sweep: dict[float, Figures] = {}
    chosen: dict[float, float] = {}
    for temperature in TEMPERATURES:
        start.policy.temperature = temperature
        sweep[temperature] = measure(start, test, oracle, samples=args.samples)
        chosen[temperature] = measure(start, validation, oracle, samples=args.samples, seed=2).kl_q_p
    found["supervised"] = {str(temperature): asdict(figures) for temperature, figures in sweep.items()}
    found["best"] = asdict(min(sweep.values(), key=lambda figures: figures.kl_q_p))
    found["temperature"] = min(chosen, key=chosen.__getitem__)
    for name, reward in (("constant", constant), ("adversarial", judge)):
        agent, _ = learner(reward)
        agent.policy.load_state_dict(start.policy.state_dict())
        agent.policy.temperature = found["temperature"]
        agent.refresh_reference()
        callback = DiscriminatorCallback(judge, steps=args.steps, warmup_steps=args.warmup_steps, seed=seed)
        began = time.process_time()
        agent.learn(args.tokens, callback=callback if reward is judge else None)
        found[f"{name}_cpu_seconds"] = time.process_time() - began
        found[name] = asdict(measure(agent, test, oracle, samples=args.samples))
    return found


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Each contestant's figures as (mean over seeds, half-width), and the differences to the controls."""
    contestants = ("best", "constant", "adversarial")
    table: dict[str, Any] = {
        name: {key: over_seeds([result[name][key] for result in results]) for key in results[0][name]}
        for name in contestants
    }
    for control in contestants[:2]:
        gains = [result[control]["kl_q_p"] - result["adversarial"]["kl_q_p"] for result in results]
        table[f"kl_q_p below {control}"] = {"gain": over_seeds(gains), "seeds": sum(gain > 0 for gain in gains)}
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the seeds; print a line a contestant and a summary."""
    parser = argparse.ArgumentParser(prog="benchmarks.adversarial", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 to n - 1 (default: %(default)s)")
    parser.add_argument(
        "--warm-start-epochs", type=float, default=10.0, help="10 is convergence (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=120_000, help="tokens of the agents (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="discriminator steps a rollout (default: %(default)s)")
    parser.add_argument("--warmup-steps", type=int, default=600, help="and before the first one (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="texts a measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    found = circumstances("cpu")
    results: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        results.append(result := one_seed(seed, args))
        for name in ("best", "constant", "adversarial"):
            figures = Figures(**result[name])
            print(
                f"seed {seed} {name:12} KL(q‖p) {figures.kl_q_p:6.3f}  KL(p‖q) {figures.kl_p_q:6.3f}  "
                f"NLL {figures.nll:6.2f}  entropy {figures.entropy:6.2f}",
                flush=True,
            )
        if args.json:  # after every seed: a run that is cut short keeps what it measured
            args.json.parent.mkdir(parents=True, exist_ok=True)
            options = {key: value for key, value in vars(args).items() if key != "json"}
            configs = {"policy": POLICY, "judge": JUDGE, "agent": asdict(AGENT), "discriminator": asdict(DISCRIMINATOR)}
            report = {
                "options": {**options, **configs},
                "circumstances": found,
                "summary": summary(results),
                "seeds": results,
            }
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    for name, values in summary(results).items():
        print(f"{name:28}", "  ".join(f"{key} {value}" for key, value in values.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
