"""The scores that a task declares, measured: random tokens, supervised learning, the optimum, the hack.

python -m benchmarks.baselines Reverse DelayedBit
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from agents import Random, Supervised, SupervisedConfig, supervised_fit
from agents.evaluation import evaluate, on_split
from benchmarks.objectives import OBJECTIVES, OPTIMA
from benchmarks.setups import Setup, setup, setups
from textgen_env import TextMDP
from textgen_env.tasks.rung import Hack


def random_score(setup: Setup, samples: int = 2000, seed: int = 0) -> float:
    """The objective, on the test split, of uniformly random tokens; of a return its mean over about ``samples``."""
    env = setup.make_env(1)
    held_out = on_split(env.mdp, "test")
    agent = Random(setup.make_model(env.mdp), env, seed=seed, device="cpu")
    if setup.objective != "return":
        return OBJECTIVES[setup.objective](agent, held_out)
    prompts = len(held_out.prompts)
    return evaluate(agent, held_out, num_prompts=prompts, samples_per_prompt=max(4, samples // prompts), seed=seed).mean


def supervised_score(setup: Setup, seed: int = 0) -> float:
    """The objective, on the test split, of fresh weights fitted to the references of the train split."""
    env = setup.make_env(1)
    agent = Supervised(setup.make_model(env.mdp), env, seed=seed, device="cpu")
    supervised_fit(agent.policy, env.mdp, SupervisedConfig(**setup.supervised), seed=seed)
    return OBJECTIVES[setup.objective](agent, on_split(env.mdp, "test"))


def optimum_score(setup: Setup) -> float:
    """The best there is of the objective on the test split."""
    return OPTIMA[setup.objective](on_split(setup.make_env(1).mdp, "test"))


def hack_scores(mdp: TextMDP, hack: Hack) -> tuple[float, float]:
    """What the cheater earns under the naive and under the robust reward, means over the split of ``mdp``."""
    answers = [mdp.written(index, hack.answer(prompt)) for index, prompt in enumerate(mdp.prompts)]
    robust = mdp if hack.robust is None else mdp.with_reward(hack.robust)
    return float(mdp.with_reward(hack.naive).returns(answers).mean()), float(robust.returns(answers).mean())


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the tasks' rungs ought to declare."""
    parser = argparse.ArgumentParser(prog="benchmarks.baselines", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("tasks", nargs="*", help="default: all with a setup")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for task in args.tasks or list(setups()):
        chosen = setup(task)
        print(
            f"{task}: random {random_score(chosen):.4f}, supervised {supervised_score(chosen):.4f}, "
            f"optimum {optimum_score(chosen):.4f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
