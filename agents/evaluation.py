"""How good is an agent on prompts it never learned from: a score with its uncertainty, and the texts behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from agents.rollout import Collector
from agents.rollout_metrics import component_means
from agents.trajectories import Trajectories
from textgen_env import TextGenVectorEnv, TextMDP

if TYPE_CHECKING:
    from agents.base import TextAlgorithm

Interval = tuple[float, float]

RESAMPLES = 2000
"""Bootstrap resamples: the ends of a 95 % interval then move by about 2 % of its width between seeds."""
_ROWS = 64


@dataclass(frozen=True)
class Sample:
    """One text of an evaluation."""

    prompt: str
    completion: str
    reference: str | None
    """The prompt's first reference."""
    score: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Intervals are 95 %, by the percentile bootstrap over prompts; None for one prompt."""

    task: str
    split: str
    greedy: bool
    samples_per_prompt: int
    best_of: int
    """Completions drawn for each one that counts; the reward chose the best of them. 1 is no choice."""
    mean: float
    """Mean reward of a completion, undiscounted."""
    interval: Interval | None
    scores: tuple[float, ...]
    """Mean reward on each prompt, in the order of ``prompt_indices``."""
    prompt_indices: tuple[int, ...]
    """The prompts, as indices into the split."""
    components: Mapping[str, float]
    """Mean raw value of each reward component, over the completions it applies to."""
    mean_length: float
    """Actions a completion, the EOS included."""
    clipped_ratio: float
    """Fraction of the completions that the length cap ended."""
    entropy: float
    """Mean entropy of the policy's next-token distribution, in nats a token."""
    kl_per_sequence: float | None
    """KL(π‖reference) in nats a completion, from the sampled log-ratios; None if greedy, best of several, or without
    a reference."""
    kl_interval: Interval | None
    distinct_1: float
    """Distinct words by all words of the completions (Li et al. 2016): low means that the texts are alike."""
    distinct_2: float
    """The same of pairs of neighbouring words."""
    samples: tuple[Sample, ...]

    @property
    def num_prompts(self) -> int:
        """N, the number of prompts."""
        return len(self.scores)

    def to_dict(self, samples: int = 8) -> dict[str, Any]:
        """Plain data for JSON, with the first few sample texts."""
        return dataclasses.asdict(dataclasses.replace(self, samples=self.samples[:samples]))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The evaluation that `to_dict` wrote; one without ``best_of`` comes from a time before there was a choice."""
        data = {"best_of": 1, **data}
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**{**plain, "samples": tuple(Sample(**sample) for sample in data["samples"])})


def evaluate(
    agent: TextAlgorithm,
    mdp: TextMDP,
    *,
    num_prompts: int = 200,
    samples_per_prompt: int = 1,
    best_of: int = 1,
    greedy: bool = False,
    seed: int = 0,
) -> Evaluation:
    """Let an agent answer prompts of ``mdp``'s split and score the answers. The agent is not changed.

    Args:
        agent: any of our agents.
        mdp: the rules, on a held-out split (see `on_split`).
        num_prompts: prompts, drawn without replacement; all of the split where it has fewer.
        samples_per_prompt: completions a prompt.
        best_of: draw so many for each completion and keep the one with the highest reward: best-of-n decoding, what
            a reward buys without training. The KL of such a policy is at most log n − (n − 1)/n (Beirami et al.
            2024); the sampled estimate would miss it, so none is given.
        greedy: the most likely token each time, instead of sampling at the training temperature.
        seed: seeds the choice of prompts, the sampling and the bootstrap: agents evaluated with the same seed
            answer the same prompts.

    Raises:
        ValueError: the environment's vocabulary is not the agent's, or several greedy samples were asked for
            (they would be equal).
    """
    if min(num_prompts, samples_per_prompt, best_of) < 1:
        counts = f"num_prompts={num_prompts}, samples_per_prompt={samples_per_prompt}, best_of={best_of}"
        raise ValueError(f"{counts}: each must be at least 1")
    if greedy and samples_per_prompt * best_of > 1:
        raise ValueError("greedy completions of one prompt are all equal: leave samples_per_prompt and best_of at 1")
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(len(mdp.prompts))[:num_prompts])
    episodes = len(chosen) * samples_per_prompt * best_of
    collector = collector_on(agent, mdp, episodes, seed)
    played = collector.collect(
        episodes, samples_per_prompt=samples_per_prompt * best_of, prompt_indices=chosen.tolist(), greedy=greedy
    )
    assert played is not None  # nobody abandons it
    if best_of > 1:
        best = played.returns_B.reshape(-1, best_of).argmax(-1)
        played = played.select(torch.arange(len(best), device=best.device) * best_of + best)
    scores = _by_prompt(played.returns_B, samples_per_prompt)
    entropy, log_ratios_B = _entropy_and_log_ratios(agent, played)
    kl_N = None if greedy or best_of > 1 or log_ratios_B is None else _by_prompt(log_ratios_B, samples_per_prompt)
    texts = [info["text"] for info in played.infos]
    return Evaluation(
        task=mdp.task.name,
        split=mdp.split,
        greedy=greedy,
        samples_per_prompt=samples_per_prompt,
        best_of=best_of,
        mean=float(scores.mean()),
        interval=bootstrap_interval(scores, generator),
        scores=tuple(scores.tolist()),
        prompt_indices=tuple(chosen.tolist()),
        components=component_means(played),
        mean_length=float(played.lengths_B.double().mean()),
        clipped_ratio=float(np.mean([info["stop_reason"] == "length" for info in played.infos])),
        entropy=entropy,
        kl_per_sequence=None if kl_N is None else float(kl_N.mean()),
        kl_interval=None if kl_N is None else bootstrap_interval(kl_N, generator),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        samples=tuple(
            Sample(info["prompt"], info["text"], next(iter(info["references"]), None), float(score))
            for info, score in zip(played.infos, played.returns_B.tolist(), strict=True)
        ),
    )


def collector_on(agent: TextAlgorithm, mdp: TextMDP, episodes: int, seed: int) -> Collector:
    """A collector of the agent's episodes in an environment of its own, for at most so many at once.

    Raises:
        ValueError: the environment's vocabulary is not the agent's.
    """
    if mdp.tokenizer.vocab_size != agent.policy.vocab_size:
        raise ValueError(
            f"the agent acts with {agent.policy.vocab_size} tokens, the environment has {mdp.tokenizer.vocab_size}: "
            "make the environment with the agent's tokenizer (tokenizer=agent.tokenizer)"
        )
    env = TextGenVectorEnv(
        min(episodes, _ROWS), mdp=mdp.for_evaluation(), autoreset_mode="Disabled", defer_scoring=not mdp.is_dense
    )
    return Collector(env, agent.policy, seed=seed)


def on_split(mdp: TextMDP, split: str) -> TextMDP:
    """The same rules on another split, with a reward that no longer adapts.

    Raises:
        ValueError: the task has no such split, or it is empty.
    """
    return mdp.for_evaluation().on_split(split)


def bootstrap_interval(values_N: npt.NDArray[np.float64], generator: np.random.Generator) -> Interval | None:
    """The 95 % percentile bootstrap interval of the mean (Efron 1979); None where one value shows no spread.

    Args:
        values_N: one value a prompt. Prompts, not completions, are resampled: those of one prompt are alike.
        generator: draws the resamples.
    """
    if len(values_N) < 2:
        return None
    rows = generator.integers(len(values_N), size=(RESAMPLES, len(values_N)))
    low, high = np.percentile(values_N[rows].mean(-1), [2.5, 97.5])
    return float(low), float(high)


def difference(before: Evaluation, after: Evaluation, *, seed: int = 0) -> tuple[float, Interval | None]:
    """Mean of ``after − before`` and its interval, paired by prompt: the prompts' own difficulty drops out.

    Raises:
        ValueError: the two did not answer the same prompts.
    """
    same = ("task", "split", "prompt_indices")
    for name in same:
        if getattr(before, name) != getattr(after, name):
            raise ValueError(f"the evaluations differ in {name}: evaluate both with the same mdp and seed")
    gains_N = np.array(after.scores) - np.array(before.scores)
    return float(gains_N.mean()), bootstrap_interval(gains_N, np.random.default_rng(seed))


def distinct(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams of words by all n-grams of the texts (Li et al. 2016), 0 where there are none.

    >>> distinct(["the cat the cat"], 1)
    0.5
    """
    split = [text.split() for text in texts]
    grams = [tuple(words[at : at + n]) for words in split for at in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _by_prompt(values_B: torch.Tensor, samples_per_prompt: int) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = values_B.double().cpu().numpy()
    return values.reshape(-1, samples_per_prompt).mean(-1)


@torch.no_grad()
def _entropy_and_log_ratios(agent: TextAlgorithm, played: Trajectories) -> tuple[float, torch.Tensor | None]:
    """Mean entropy a token, and ``log π − log π_ref`` of each completion where there is a reference."""
    log_probs_BT = torch.zeros_like(played.log_probs_BT)
    total_B = torch.zeros(len(played), dtype=torch.float64, device=log_probs_BT.device)

    def score(rows: torch.Tensor, part: Trajectories) -> None:
        # Both sides of the ratio by the same full forward: the sampler's cached one rounds differently in bf16.
        scored_BT, _, entropies_BT = agent.policy.score(part)
        log_probs_BT[rows, : scored_BT.shape[1]] = scored_BT
        total_B[rows] = entropies_BT.double().sum(-1)

    agent.micro_batches.each(played, score)
    log_ratios_B = None
    if agent.reference is not None:
        reference_BT, _ = agent.rescore(agent.reference, played)
        log_ratios_B = ((log_probs_BT - reference_BT) * played.action_mask_BT).sum(-1)
    return float(total_B.sum()) / played.num_tokens, log_ratios_B
