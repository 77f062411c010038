"""Agents on tasks whose optimum is known: every algorithm with its preset, several seeds, held-out prompts.

    python -m benchmarks.suite run --tasks Reverse DelayedBit --algos ppo a2c --seeds 5 --output suite.jsonl
    python -m benchmarks.suite report suite.jsonl

A run is one line of the output, with all that is needed to repeat it. Runs that the output holds already are not made
again, so an interrupted suite goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import SupervisedConfig, supervised_fit
from agents.algorithms import find_algorithm
from agents.evaluation import evaluate, on_split
from benchmarks import presets
from benchmarks.learning import over_seeds
from benchmarks.measure import circumstances
from benchmarks.setups import Setup, setup
from textgen_env import TextMDP

SOLVED = 0.99
"""Share of the optimum, on held-out prompts."""
_EVALUATIONS = 20


@dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    algorithm: str
    seed: int


def run(job: Job) -> dict[str, Any]:
    """Train one agent and measure it on prompts it never saw: the line that is written."""
    config, shared = presets.preset(job.algorithm, job.task), setup(job.task)
    line: dict[str, Any] = {
        **dataclasses.asdict(job),
        "setup": dataclasses.asdict(shared),
        "preset": dataclasses.asdict(config),
    }
    try:
        torch.set_num_threads(1)
        return {**line, **_train(job, config, shared), "circumstances": circumstances("cpu")}
    except Exception:  # a failed seed is shown, and the others go on
        return {**line, "error": traceback.format_exc()}


def _train(job: Job, config: Any, shared: Setup) -> dict[str, Any]:
    env = shared.make_env(config.num_envs)
    mdp = env.mdp
    watched, held_out = on_split(mdp, "validation"), on_split(mdp, "test")
    agent = find_algorithm(job.algorithm)[0](shared.make_model(mdp), env, config, seed=job.seed, device="cpu")
    if shared.warm_start is not None:
        supervised_fit(agent.policy, mdp, SupervisedConfig(**shared.warm_start), seed=job.seed)
        agent.refresh_reference()
    watch = _Watch(watched, every=max(1, shared.total_tokens // _EVALUATIONS))
    began = time.process_time()
    agent.learn(shared.total_tokens, callback=watch)
    seconds = time.process_time() - began - watch.seconds
    greedy = evaluate(agent, held_out, num_prompts=len(held_out.prompts), greedy=True)
    sampled = evaluate(agent, held_out, num_prompts=len(held_out.prompts), samples_per_prompt=8)
    optimum = held_out.optimal_return()
    solved_at = next((point for point in watch.curve if point["greedy"] >= SOLVED), None)
    return {
        "optimum": optimum,
        "prompts": len(held_out.prompts),
        "greedy": greedy.mean / optimum,
        "sampled": sampled.mean / optimum,
        "entropy": sampled.entropy,
        "tokens": agent.num_timesteps,
        "episodes": agent._episode_num,
        "cpu_seconds": seconds,
        "solved_at_tokens": None if solved_at is None else solved_at["tokens"],
        "solved_at_episodes": None if solved_at is None else solved_at["episodes"],
        "curve": watch.curve,
    }


class _Watch(BaseCallback):
    """Greedy scores on the validation prompts, as shares of the optimum, while the agent learns."""

    def __init__(self, mdp: TextMDP, every: int) -> None:
        super().__init__()
        self.mdp = mdp
        self.every = every
        self.optimum = mdp.optimal_return()
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= len(self.curve) * self.every:
            began = time.process_time()
            found = evaluate(self.model, self.mdp, num_prompts=len(self.mdp.prompts), greedy=True)  # type: ignore[arg-type]
            point = {"tokens": self.num_timesteps, "episodes": self.model._episode_num}
            self.curve.append({**point, "greedy": found.mean / self.optimum})
            self.seconds += time.process_time() - began


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of an output file; none where there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def run_all(
    jobs: Sequence[Job], output: Path, workers: int, pool: Any = ProcessPoolExecutor
) -> Iterator[dict[str, Any]]:
    """Make the runs that the output lacks, ``workers`` at a time, each line written as it comes."""
    done = {Job(line["task"], line["algorithm"], line["seed"]) for line in read(output) if "error" not in line}
    missing = [job for job in jobs if job not in done]
    output.parent.mkdir(parents=True, exist_ok=True)
    with pool(workers, mp_context=get_context("spawn")) as executor:
        for future in as_completed([executor.submit(run, job) for job in missing]):
            line = future.result()
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            yield line


def report(lines: Iterable[dict[str, Any]]) -> str:
    """A Markdown table, task by algorithm. A run that failed is shown as such."""
    cells: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for job, line in _last(lines).items():
        cells.setdefault((job.task, job.algorithm), {})[job.seed] = line
    rows = [
        "| task | algorithm | solved, of seeds | greedy, share of optimum | sampled | episodes to solve, median (most) "
        "| episodes | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, algorithm), seeds in sorted(cells.items()):
        good = [line for line in seeds.values() if "error" not in line]
        failed = f", {len(seeds) - len(good)} failed" if len(good) < len(seeds) else ""
        if not good:
            rows.append(f"| {task} | {algorithm} | 0 of {len(seeds)}{failed} | | | | | |")
            continue
        solved = [line for line in good if line["greedy"] >= SOLVED]
        took = [line["solved_at_episodes"] for line in solved if line["solved_at_episodes"] is not None]
        when = f"{statistics.median(took):,.0f} ({max(took):,})" if took else ""
        shares = [_with_interval([line[way] for line in good]) for way in ("greedy", "sampled")]
        rows.append(
            f"| {task} | {algorithm} | {len(solved)} of {len(seeds)}{failed} | {shares[0]} | {shares[1]} | {when} "
            f"| {max(line['episodes'] for line in good):,} "
            f"| {statistics.median(line['cpu_seconds'] for line in good):.0f} |"
        )
    return "\n".join(rows)


def _last(lines: Iterable[dict[str, Any]]) -> dict[Job, dict[str, Any]]:
    """Of a run that was made again the last line counts."""
    return {Job(line["task"], line["algorithm"], line["seed"]): line for line in lines}


def _with_interval(values: list[float]) -> str:
    mean, half = over_seeds(values)
    return f"{mean:.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite, or print its table."""
    parser = argparse.ArgumentParser(prog="benchmarks.suite", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="train the agents; go on with what the output lacks")
    runs.add_argument("--tasks", nargs="+", default=["Reverse", "DelayedBit"], help="default: %(default)s")
    runs.add_argument("--algos", nargs="+", default=presets.names(), help="default: those with presets: %(default)s")
    runs.add_argument("--seeds", type=int, default=5, help="number of seeds, 0 to n - 1 (default: %(default)s)")
    runs.add_argument("--workers", type=int, default=2, help="runs side by side, a core each (default: %(default)s)")
    runs.add_argument("--output", type=Path, required=True, help="a JSON line a run")
    table = commands.add_parser("report", help="the table of an output file")
    table.add_argument("file", type=Path)
    args = parser.parse_args(argv)
    if args.command == "report":
        lines = read(args.file)
        if not lines:
            parser.error(f"{args.file} holds no runs: make some with 'run --output {args.file}'")
        print(report(lines))
        return int(any("error" in line for line in _last(lines).values()))
    jobs = [Job(task, algorithm, seed) for task in args.tasks for algorithm in args.algos for seed in range(args.seeds)]
    try:
        for job in jobs:  # a misspelled name now, not an hour from now
            presets.preset(job.algorithm, job.task), setup(job.task)
    except (ValueError, TypeError) as error:
        parser.error(str(error))
    failed = 0
    for line in run_all(jobs, args.output, args.workers):
        name = f"{line['task']} {line['algorithm']} seed {line['seed']}"
        failed += "error" in line
        if "error" in line:
            print(f"{name}: FAILED\n{line['error']}", file=sys.stderr, flush=True)
        else:
            when = line["solved_at_episodes"]
            print(
                f"{name}: greedy {line['greedy']:.3f}, sampled {line['sampled']:.3f} of the optimum after "
                f"{line['episodes']:,} episodes, {'never solved' if when is None else f'solved at {when:,}'}, "
                f"{line['cpu_seconds']:.0f} CPU s",
                flush=True,
            )
    print(report(read(args.output)))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
