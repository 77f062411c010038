"""What the library costs, next to what the same model costs bare: `python -m benchmarks.throughput`.

Every figure stands beside a baseline from the same run, and beside its target. One torch thread, set on purpose:
with more, small models on a busy machine measure the scheduler.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):  # run as a file: the repository's root is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from agents import A2C, DQN, GRPO, NLPO, PPO, REINFORCE
from agents.base import TextAlgorithm
from agents.policy import Precision
from agents.rollout import Collector
from benchmarks import peers
from benchmarks.measure import (
    Timing,
    check_cuda,
    cpu_flags,
    in_fresh_process,
    peak_memory_mb,
    speed_ratio,
    take_turns,
)
from benchmarks.table import Row, measure, one_thread, publish
from benchmarks.workload import (
    Workload,
    bare_decode,
    bare_forward,
    bare_update,
    environment_alone,
    generate,
    iteration,
    q_update,
    update_epoch,
)

QUICK = Workload(
    layers=1, width=32, heads=2, vocab_size=64, prompt_tokens=6, new_tokens=8, shortest=2, rows=4, env_steps=80
)


@dataclass(frozen=True)
class PolicyGradientAgent:
    """An agent whose iterations are measured, and the bare parts that one cannot do without."""

    name: str
    kind: type[TextAlgorithm]
    options: Mapping[str, Any] = field(default_factory=dict)
    decodes: int = 1
    epochs: bool = False
    """Whether it makes the workload's epochs of a rollout, rather than one."""


POLICY_GRADIENT = (
    PolicyGradientAgent("REINFORCE", REINFORCE, {"baseline": "value", "samples_per_prompt": 1}),
    PolicyGradientAgent("A2C", A2C),
    PolicyGradientAgent("PPO", PPO, epochs=True),
    PolicyGradientAgent("GRPO", GRPO, {"samples_per_prompt": 2}, epochs=True),
    PolicyGradientAgent("NLPO", NLPO, decodes=2, epochs=True),  # the lagged policy reads every token too
)


@dataclass
class Benchmark:
    """The sections of the table, each a few rows, on one workload.

    Args:
        workload: the sizes.
        repeats: measured turns of every contender.
        device: "cpu" or "cuda".
        precision: of rollouts and whole iterations, ours and the baselines' alike.
    """

    workload: Workload
    repeats: int = 3
    device: str = "cpu"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        self.on_gpu = self.device.startswith("cuda")
        self.per_second = "second" if self.on_gpu else "CPU-second"
        self.agent = self.workload.agent(self.device, self.precision)
        self.model = self.agent.policy.model
        self.prompts = self.workload.prompt_ids(self.workload.rows).to(self.device)
        # Whole sequences for the bare forwards; which tokens they hold does not matter.
        self.sequences = torch.randint(
            2, self.workload.vocab_size, (self.workload.rows, self.workload.prompt_tokens + self.workload.new_tokens)
        ).to(self.device)
        self.iteration_rate = 0.0

    def sections(self) -> Iterator[list[Row]]:
        """All rows, section by section, as they are measured."""
        sections = (
            self.rollout,
            self.varying_lengths,
            self.update,
            self.q_update,
            self.whole,
            self.bf16,
            self.environment,
        )
        for section in sections:
            yield section()
        if not self.on_gpu:
            yield self.memory()

    def rollout(self) -> list[Row]:
        """Fixed lengths: the collector, log-probabilities and values included, against ``generate``."""
        sizes = self.workload
        collector = sizes.collector(self.agent)
        timings = self._take_turns(
            {
                "ours": lambda: self._collect(collector, sizes.rows),
                "generate": lambda: generate(self.model, self.prompts, sizes.new_tokens, self.precision),
            }
        )
        return [self._faster(f"rollout, {sizes.new_tokens} tokens each", timings, "generate()", ">= 1.05")]

    def varying_lengths(self) -> list[Row]:
        """Lengths that vary: useful tokens a second; ``generate`` runs every batch to its longest text."""
        sizes = self.workload
        rows = []
        for episodes in (sizes.rows, 2 * sizes.rows, 4 * sizes.rows):
            lengths = sizes.lengths(episodes)
            contenders = {
                "ours": functools.partial(self._collect, sizes.collector(self.agent, lengths), episodes),
                "generate": functools.partial(self._generate_batches, lengths),
            }
            timings = self._take_turns(contenders)
            name = f"rollout, {sizes.shortest}-{sizes.new_tokens} tokens, {episodes} episodes on {sizes.rows} rows"
            rows.append(self._faster(name, timings, f"generate() in batches of {sizes.rows}", ">= 1.4"))
        return rows

    def update(self) -> list[Row]:
        """One epoch and its optimiser step, float32, against forward and backward alone."""
        agent = self.agent if self.precision == "float32" else self.workload.agent(self.device, "float32")
        timings = self._take_turns({"ours": update_epoch(agent), "bare": self._bare_update(agent)})
        return [self._costlier("update epoch, float32", timings, "bare forward + backward", "<= 1.25")]

    def q_update(self) -> list[Row]:
        """DQN's update on a batch of whole episodes, its slow copy's forward included, likewise."""
        agent = self.workload.agent(self.device, "float32", DQN)
        timings = self._take_turns({"ours": q_update(agent), "bare": self._bare_update(agent)})
        return [self._costlier("DQN update, float32", timings, "bare forward + backward", "<= 1.5")]

    def whole(self) -> list[Row]:
        """Every policy-gradient agent's iteration against the sum of the bare parts it cannot do without."""
        sizes, precision = self.workload, self.precision
        agents = {
            agent.name: sizes.agent(self.device, precision, agent.kind, **agent.options) for agent in POLICY_GRADIENT
        }
        timings = self._take_turns(
            {
                **{name: functools.partial(iteration, agent) for name, agent in agents.items()},
                "generate": lambda: generate(self.model, self.prompts, sizes.new_tokens, precision),
                "loop": lambda: bare_decode(self.model, self.prompts, sizes.new_tokens, precision),
                "forward": self._bare_forward,
                "update": self._bare_update(self.agent),
            }
        )
        fastest = min("generate", "loop", key=lambda name: statistics.median(timings[name].seconds))
        rows = []
        for agent in POLICY_GRADIENT:
            updates = sizes.epochs if agent.epochs else 1
            parts = {fastest: agent.decodes, "forward": 1, "update": updates}
            ours = timings[agent.name]
            both = {"ours": ours, "floor": Timing.added({timings[part]: n for part, n in parts.items()}, ours.units)}
            floor = f"{agent.decodes} x {'generate()' if fastest == 'generate' else 'bare loop'}"
            note = f"floor: {floor} + 1 forward + {updates} x (forward + backward)"
            rows.append(self._costlier(f"{agent.name} iteration", both, "floor", "<= 1.25", note))
        self.iteration_rate = timings["PPO"].rate
        return rows

    def bf16(self) -> list[Row]:
        """What bf16 autocast gains in an update epoch, and in a whole iteration."""
        sizes = self.workload
        halved, full = sizes.agent(self.device, "bf16"), sizes.agent(self.device, "float32")
        timings = self._take_turns({"ours": update_epoch(halved), "float32": update_epoch(full)})
        whole = self._take_turns({"ours": lambda: iteration(halved), "float32": lambda: iteration(full)})
        supported = self.on_gpu or "avx512_bf16" in cpu_flags()
        note = "" if supported else "no target: this CPU lacks AVX512-BF16"
        return [
            self._faster("update epoch, bf16", timings, "float32", ">= 1.6" if supported else "", note),
            self._faster("PPO iteration, bf16", whole, "float32", "", note),
        ]

    def environment(self) -> list[Row]:
        """The environment's share of a rollout, and its speed alone."""
        shares = [self._environment_share() for _ in range(self.repeats)]
        alone = self._take_turns({"env": environment_alone(self.workload)})["env"]
        return [
            Row("environment's share of the rollout", "%", 100 * statistics.median(shares), target="<= 3"),
            Row(
                f"environment alone, {self.workload.rows} rows",
                f"row-steps / {self.per_second}",
                alone.rate,
                target=">= 1000000",
            ),
        ]

    def memory(self) -> list[Row]:
        """Peak memory of a process that runs one PPO iteration, and of one that runs the bare parts."""
        ours = in_fresh_process(_memory_of_an_iteration, self.workload, self.precision)
        bare = in_fresh_process(_memory_of_the_floor, self.workload, self.precision)
        return [Row("peak memory of a PPO iteration", "MB", ours, "floor", bare, ours / bare)]

    def peers(self) -> Iterator[list[Row]]:
        """Whole iterations of other libraries, each in a process of its own."""
        sizes = self.workload
        rate = self.iteration_rate or self._take_turns({"ours": lambda: iteration(self.agent)})["ours"].rate
        once = sizes.agent(
            self.device, self.precision, epochs=1, samples_per_prompt=min(8, sizes.rows), kl_coef_per_sequence=0.0
        )
        for peer in peers.PEERS:
            missing = peer.missing()
            if missing:
                print(f"{peer.name}: {missing} is not installed", file=sys.stderr)
                continue
            ours = rate if peer.epochs is None else self._take_turns({"ours": lambda: iteration(once)})["ours"].rate
            theirs = in_fresh_process(peer.run, sizes, self.device, self.repeats)
            yield [
                Row(
                    f"PPO iteration, {peer.epochs or sizes.epochs} epochs",
                    f"tokens / {self.per_second}",
                    ours,
                    peer.name,
                    theirs["tokens_per_second"],
                    ours / theirs["tokens_per_second"],
                    note=f"{peer.note}; its peak memory: {theirs['peak_memory_mb']:,.0f} MB",
                )
            ]

    # ------------------------------------------------------------------------------------------------------

    def _take_turns(self, contenders: Mapping[str, Callable[[], float]]) -> dict[str, Timing]:
        return take_turns(contenders, self.repeats, self.on_gpu)

    def _faster(self, name: str, timings: dict[str, Timing], baseline: str, target: str, note: str = "") -> Row:
        ours, base = timings.values()
        unit = f"tokens / {self.per_second}"
        return Row(name, unit, ours.rate, baseline, base.rate, speed_ratio(ours, base), target, note)

    def _costlier(self, name: str, timings: dict[str, Timing], baseline: str, target: str, note: str = "") -> Row:
        first, *_, last = timings.values()
        ratio = 1 / speed_ratio(first, last)
        return Row(name, f"tokens / {self.per_second}", first.rate, baseline, last.rate, ratio, target, note)

    def _collect(self, collector: Collector, episodes: int) -> int:
        trajectories = collector.collect(episodes)
        assert trajectories is not None
        return trajectories.num_tokens

    def _generate_batches(self, lengths: Sequence[int]) -> int:
        for start in range(0, len(lengths), self.workload.rows):
            longest = max(lengths[start : start + self.workload.rows])
            generate(self.model, self.prompts, longest, self.precision)
        return sum(lengths)

    def _bare_update(self, agent: PPO) -> Callable[[], int]:
        def run() -> int:
            bare_update(agent.policy.model, self.sequences, agent.policy.precision)
            return self.workload.tokens

        return run

    def _bare_forward(self) -> int:
        bare_forward(self.model, self.sequences, self.precision)
        return self.workload.tokens

    def _environment_share(self) -> float:
        collector = self.workload.collector(self.agent)
        inside = [0.0]
        for method in ("reset", "step"):
            setattr(collector.env, method, _timed(getattr(collector.env, method), inside))
        timing = Timing(self.on_gpu)
        timing.measure(lambda: self._collect(collector, self.workload.rows))
        return inside[0] / timing.cpu[0]


def _timed(method: Callable[..., Any], inside: list[float]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return method(*args, **kwargs)
        finally:
            inside[0] += time.process_time() - start

    return run


def _memory_of_an_iteration(workload: Workload, precision: Precision) -> float:
    torch.set_num_threads(1)
    iteration(workload.agent("cpu", precision))
    return peak_memory_mb()


def _memory_of_the_floor(workload: Workload, precision: Precision) -> float:
    torch.set_num_threads(1)
    bare = Benchmark(workload, precision=precision)
    bare_decode(bare.model, bare.prompts, workload.new_tokens, precision)
    bare_forward(bare.model, bare.sequences, precision)
    bare_update(bare.model, bare.sequences, precision)
    return peak_memory_mb()


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """The command line; returns the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="measured turns of every contender")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="of rollouts and updates")
    parser.add_argument("--peers", action="store_true", help="run SB3's PPO, and TRL's trainers where installed, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and circumstances there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, the figures mean nothing")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda"):
        try:
            check_cuda("without --device the CPU is measured")
        except ValueError as error:
            parser.error(str(error))
    sizes = QUICK if options.quick else Workload()
    with one_thread():
        benchmark = Benchmark(sizes, 1 if options.quick else options.repeats, options.device, options.precision)
        parts = [benchmark.sections(), *([benchmark.peers()] if options.peers else [])]
        rows, where = measure(itertools.chain(*parts), options.device, quick=options.quick)
    facts = {"workload": asdict(sizes), "repeats": benchmark.repeats, "precision": options.precision}
    publish(rows, where, facts, options.json)
    return rows


if __name__ == "__main__":
    main()
