"""One run: a contender learns a task with a seed, and is judged on prompts it never saw, as all others are."""

from __future__ import annotations

import copy
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agents.base import TextAlgorithm
from agents.evaluation import Sample, collector_on, evaluate, on_split
from agents.policy import TextPolicy
from benchmarks.contender import Contender, Learned
from benchmarks.contenders import find_contender
from benchmarks.measure import circumstances, peak_memory_mb
from benchmarks.objectives import OBJECTIVES
from benchmarks.setups import setup
from benchmarks.warm_start import Start, make_start
from benchmarks.watch import Watch
from textgen_env import TextMDP
from textgen_env.tasks.ladder import LADDER, RECOGNISABLE
from textgen_env.tasks.rung import Rung

RUNGS: Mapping[str, Rung] = {**LADDER, **RECOGNISABLE}
SAMPLES_PER_PROMPT = 8
LOOK_PROMPTS = 128
"""At most, of the validation split, at every look: where answers are long, looking would cost more than learning."""
_SAMPLES = 3


@dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    contender: str
    seed: int
    budget: float = 1.0
    """Factor of the task's tokens."""
    cache: Path | None = None
    """Where warm-started weights are kept."""
    device: str = "cpu"
    """Where it learns, and is judged."""


def run(job: Job) -> dict[str, Any]:
    """The line of a run; of one that failed, with its traceback."""
    line: dict[str, Any] = {"task": job.task, "contender": job.contender, "seed": job.seed}
    try:
        torch.set_num_threads(1)
        contender, shared = find_contender(job.contender), setup(job.task)
        line |= {"setup": asdict(shared), "preset": contender.options(shared), "budget": job.budget}
        if job.device != "cpu" and not contender.on_any_device:
            raise ValueError(f"{job.contender} learns on the CPU alone: leave the job's device at 'cpu'")
        line["circumstances"] = {**circumstances(job.device), **contender.versions()}
        start = make_start(shared, job.seed, job.budget, job.cache)
        return {**line, **_measured(contender, replace(start, device=job.device))}
    except Exception:  # a failed seed is shown, and the others go on
        return {**line, "error": traceback.format_exc()}


def _measured(contender: Contender, start: Start) -> dict[str, Any]:
    rung = RUNGS.get(start.setup.task)
    normalised = None if rung is None else rung.normalised
    examinee = Examinee(start)
    watch = Watch(lambda policy: examinee.score(policy, "validation"), start.tokens, normalised)
    learned = contender.learn(start, watch)
    found = examinee.best_of(learned, watch) if learned.best_of > 1 else examinee.figures(learned)
    return {
        **found,
        "normalised": None if normalised is None else normalised(found["score"]),
        "optimum": None if rung is None else rung.optimum,
        "random": None if rung is None else rung.random,
        "cpu_seconds": watch.cpu_seconds,
        "wall_seconds": watch.wall_seconds,
        "warm_start_cpu_seconds": start.warm_start_cpu_seconds,
        "process_cpu_seconds": time.process_time(),
        "peak_memory_mb": peak_memory_mb(),
        "solved_at": watch.solved_at(start.setup.solved),
        "curve": watch.curve,
    }


def _thinned(mdp: TextMDP) -> TextMDP:
    """The rules with a validation split of few enough prompts to look at again and again, spread over all of it."""
    prompts = mdp.task.prompts("validation")
    every = math.ceil(len(prompts) / LOOK_PROMPTS)
    view = copy.copy(mdp)
    view.task = replace(mdp.task, splits={**mdp.task.splits, "validation": prompts[::every]})
    return view


class Examinee:
    """An agent that lends itself to any policy, its reference the policy that all start from."""

    def __init__(self, start: Start) -> None:
        env = start.setup.make_env(1)
        self._agent = TextAlgorithm(start.model(), env, seed=start.seed, device=start.device)
        if start.setup.warm_start is None:  # the distance from random weights says nothing
            self._agent.reference = None
        self._splits = {"validation": on_split(_thinned(env.mdp), "validation"), "test": on_split(env.mdp, "test")}
        self._objective = OBJECTIVES[start.setup.objective]

    def score(self, policy: TextPolicy, split: str) -> float:
        """What the task is judged by."""
        self._agent.policy = policy
        return float(self._objective(self._agent, self._splits[split]))

    def figures(self, learned: Learned) -> dict[str, Any]:
        """Everything about the policy on the test split."""
        held_out = self._splits["test"]
        score = self.score(learned.policy, "test")
        sampled = evaluate(
            self._agent, held_out, num_prompts=len(held_out.prompts), samples_per_prompt=SAMPLES_PER_PROMPT
        )
        return {
            "score": score,
            "sampled": sampled.mean,
            "entropy": sampled.entropy,
            "kl_per_sequence": sampled.kl_per_sequence,
            "tokens": learned.tokens,
            "episodes": learned.episodes,
            "samples": [
                asdict(sample) for sample in evaluate(self._agent, held_out, num_prompts=_SAMPLES, greedy=True).samples
            ],
        }

    def best_of(self, learned: Learned, watch: Watch) -> dict[str, Any]:
        """The same of a policy whose samples the reward chooses from; all that it draws counts as tokens."""
        self._agent.policy = learned.policy
        held_out = self._splits["test"]
        entropy = evaluate(self._agent, held_out, num_prompts=len(held_out.prompts)).entropy
        with watch:
            found = best_of(self._agent, held_out, learned.best_of)
            tokens, episodes = found["tokens"], found["episodes"]
            # One look: there is nothing between no answer and all of them.
            watch.judge = lambda _: float(best_of(self._agent, self._splits["validation"], learned.best_of)["score"])
            watch.look(learned.policy, tokens, episodes)
        return {**found, "sampled": None, "entropy": entropy, "kl_per_sequence": None}


def best_of(agent: TextAlgorithm, mdp: TextMDP, n: int) -> dict[str, Any]:
    """The mean return of the best of ``n`` samples of every prompt, what was drawn for it, and some of the texts."""
    prompts = len(mdp.prompts)
    played = collector_on(agent, mdp, n * prompts, seed=0).collect(
        n * prompts, samples_per_prompt=n, prompt_indices=list(range(prompts))
    )
    assert played is not None  # nobody abandons it
    returns = played.returns_B.double().reshape(prompts, n)
    best = played.select(returns.argmax(-1)[:_SAMPLES] + n * torch.arange(min(_SAMPLES, prompts)))
    texts = zip(best.infos, best.returns_B.tolist(), strict=True)
    return {
        "score": float(returns.max(-1).values.mean()),
        "tokens": played.num_tokens,
        "episodes": len(played),
        "samples": [asdict(_sample(info, score)) for info, score in texts],
    }


def _sample(info: Mapping[str, Any], score: float) -> Sample:
    return Sample(info["prompt"], info["text"], next(iter(info["references"]), None), score)
