"""Does training against a discriminator bring a policy nearer to the corpus than its controls come?

    python -m benchmarks.adversarial --seeds 5 --json benchmarks/results/adversarial.json

The task is MatchCorpus: the corpus is drawn from a known Markov chain p, so the divergence of a policy q from it is
no proxy. Every policy has the same architecture, too small for half of what the chain knows (see `benchmarks.setups`).
The contestants, each seed anew:

- *supervised*: maximum likelihood of the corpus, read at several temperatures. "best" is the one with the lowest
  KL(q‖p) on the very prompts reported on: more than a user could know.
- *constant*: from the temperature that is best on the validation prompts, REINFORCE with a constant reward and the KL
  to where it started.
- *adversarial*: the same, the discriminator in place of the constant.
- *oracle*: the same, the true log-ratio log p − log q in place of the discriminator: what a perfect one would bring.

Both divergences are sums over the places of a text of the exact divergence between the two next-word distributions
(the chain rule), averaged over texts: the policy's own for KL(q‖p), the chain's for KL(p‖q). Held-out prompts.
Measured: `results/README.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import REINFORCE, SupervisedConfig, small_gpt2, supervised_fit
from agents.adversarial import DiscriminatorCallback, corpus
from agents.evaluation import on_split
from agents.model_source import load_model
from agents.policy import TextPolicy
from benchmarks.learning import over_seeds
from benchmarks.markov import divergence, next_word, written
from benchmarks.measure import circumstances
from benchmarks.objectives import chain_of
from benchmarks.presets import preset
from benchmarks.setups import setup
from benchmarks.warm_start import make_start
from reward_models.discriminator import Discriminator, DiscriminatorConfig
from textgen_env import TextGenVectorEnv, TextMDP
from textgen_env.tasks.markov import FIRST_WORD_ID, MarkovOracle

TEMPERATURES = (1.2, 1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
JUDGE = {"layers": 1, "width": 64, "heads": 4}
JUDGE_WARM_START = SupervisedConfig(epochs=10, batch_size=64, learning_rate=0.005)
DISCRIMINATOR = DiscriminatorConfig(learning_rate=3e-3, weight_decay=0.01, batch_size=64, clip=40.0)
STEPS = {"steps": 6, "warmup_steps": 600}
CONTESTANTS = ("best", "constant", "adversarial", "oracle")


def pretrained_discriminator(mdp: TextMDP, seed: int) -> Discriminator:
    """A discriminator that has read the corpus first, as a language model: it then knows what to compare with.

    From random weights it is no judge for the first rollouts, and the policy forgets what it had learned.
    """
    positions = mdp.max_prompt_tokens + mdp.max_new_tokens
    model = load_model(small_gpt2(mdp.tokenizer, positions=positions, **JUDGE), seed)
    reader = TextPolicy(model, mdp.tokenizer.vocab_size)
    supervised_fit(reader, mdp, JUDGE_WARM_START, seed=seed)
    return Discriminator(mdp.tokenizer, reader.model, DISCRIMINATOR, seed=seed, device="cpu")


def against_a_discriminator(mdp: TextMDP, seed: int) -> tuple[TextMDP, list[BaseCallback]]:
    """The same rules with a discriminator as the reward, and what trains it: a `Setup.trainer`."""
    judge = pretrained_discriminator(mdp, seed)
    return mdp.with_reward(judge), [DiscriminatorCallback(judge, seed=seed, **STEPS)]


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


class LogRatio:
    """log p − log q of every token, the policy q as it is: the reward of a discriminator that errs nowhere."""

    name = "log_ratio"
    kind = "terminal"

    def __init__(self, chain: MarkovOracle) -> None:
        self.chain = chain
        self.policy: TextPolicy | None = None
        """To be set before anything is scored."""

    def __call__(self, completion_ids: list[list[int]], context_ids: list[tuple[int, int]]) -> list[list[float]]:
        """One number a token."""
        assert self.policy is not None
        texts = torch.tensor([[*context, *ids] for context, ids in zip(context_ids, completion_ids, strict=True)])
        log_q, log_p = next_word(self.policy, texts, self.chain.log_probs_WWW)
        ratios: list[list[float]] = (log_p - log_q).gather(-1, texts[:, 2:, None] - FIRST_WORD_ID).squeeze(-1).tolist()
        return ratios


def one_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Every contestant's figures, and what they cost."""
    # The corpus and the chain are the same in every seed; weights, batches and samples are the seed's own.
    shared = setup("MatchCorpus")
    start = make_start(shared, seed)
    chain, config = chain_of(start.mdp), preset("reinforce", "MatchCorpus")
    tokens = shared.total_tokens if args.tokens is None else args.tokens
    found: dict[str, Any] = {"seed": seed, "supervised_cpu_seconds": start.warm_start_cpu_seconds}

    def learner(mdp: TextMDP, temperature: float) -> REINFORCE:
        options = replace(config, temperature=temperature)
        return REINFORCE(start.model(), TextGenVectorEnv(config.num_envs, mdp=mdp), options, seed=seed, device="cpu")

    test, validation = on_split(start.mdp, "test"), on_split(start.mdp, "validation")
    sweep: dict[float, Figures] = {}
    chosen: dict[float, float] = {}
    for temperature in TEMPERATURES:
        agent = learner(start.mdp, temperature)
        sweep[temperature] = measure(agent, test, chain, samples=args.samples)
        chosen[temperature] = measure(agent, validation, chain, samples=args.samples, seed=2).kl_q_p
    found["supervised"] = {str(temperature): asdict(figures) for temperature, figures in sweep.items()}
    found["best"] = asdict(min(sweep.values(), key=lambda figures: figures.kl_q_p))
    found["temperature"] = min(chosen, key=chosen.__getitem__)
    perfect = LogRatio(chain)

    def plain(reward: Callable[..., Any]) -> tuple[TextMDP, list[BaseCallback]]:
        return start.mdp.with_reward(reward), []

    for name in CONTESTANTS[1:]:
        began = time.process_time()
        if name == "adversarial":
            mdp, callbacks = against_a_discriminator(start.mdp, seed)
        else:
            mdp, callbacks = plain(constant if name == "constant" else perfect)
        agent = learner(mdp, found["temperature"])
        perfect.policy = agent.policy
        agent.learn(tokens, callback=callbacks)
        found[f"{name}_cpu_seconds"] = time.process_time() - began
        found[name] = asdict(measure(agent, test, chain, samples=args.samples))
    return found


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Each contestant's figures as (mean over seeds, half-width), and the adversary's gains over its controls."""
    table: dict[str, Any] = {
        name: {key: over_seeds([result[name][key] for result in results]) for key in results[0][name]}
        for name in CONTESTANTS
    }
    for control in CONTESTANTS[:2]:
        gains = [result[control]["kl_q_p"] - result["adversarial"]["kl_q_p"] for result in results]
        table[f"kl_q_p below {control}"] = {"gain": over_seeds(gains), "seeds": sum(gain > 0 for gain in gains)}
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the seeds; print a line a contestant and a summary."""
    parser = argparse.ArgumentParser(prog="benchmarks.adversarial", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 to n - 1 (default: %(default)s)")
    parser.add_argument("--tokens", type=int, help="tokens of the agents (default: the task's budget)")
    parser.add_argument("--samples", type=int, default=1000, help="texts a measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    found = circumstances("cpu")
    results: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        results.append(result := one_seed(seed, args))
        for name in CONTESTANTS:
            figures = Figures(**result[name])
            print(
                f"seed {seed} {name:12} KL(q‖p) {figures.kl_q_p:6.3f}  KL(p‖q) {figures.kl_p_q:6.3f}  "
                f"NLL {figures.nll:6.2f}  entropy {figures.entropy:6.2f}",
                flush=True,
            )
        if args.json:  # after every seed: a run that is cut short keeps what it measured
            args.json.parent.mkdir(parents=True, exist_ok=True)
            options = {key: value for key, value in vars(args).items() if key != "json"}
            configs = {
                "setup": asdict(setup("MatchCorpus")),
                "agent": asdict(preset("reinforce", "MatchCorpus")),
                "judge": {**JUDGE, **STEPS, **asdict(DISCRIMINATOR), "warm_start": asdict(JUDGE_WARM_START)},
            }
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
