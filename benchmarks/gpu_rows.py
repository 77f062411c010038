"""The rows of `benchmarks.gpu` for one shape: each measured beside its baseline, in bf16."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from agents.policy import Precision
from agents.rollout import Collector
from agents.static_decoder import StaticDecoder, decoder_for
from benchmarks import hardware
from benchmarks.measure import Contender, Timing, in_fresh_process, peak_memory_mb, speed_ratio, take_turns
from benchmarks.peers import PEERS
from benchmarks.table import Row
from benchmarks.workload import Workload, generate, iteration, update_epoch


@dataclass
class Benchmark:
    """The sections of the table for one shape, each a few rows.

    Args:
        shape: its name.
        sizes: how large it is; ``sizes.rows`` environments.
        model: with its weights, on the CPU: every section learns with a copy.
        repeats: measured turns of every contender.
        device: "cuda", or "cpu" for tiny sizes.
        quick: small copies and products, too.
    """

    shape: str
    sizes: Workload
    model: PreTrainedModel
    repeats: int
    device: str
    quick: bool = False

    def __post_init__(self) -> None:
        self.on_gpu = self.device.startswith("cuda")
        self.capacity = self.sizes.prompt_tokens + self.sizes.new_tokens

    def section(self, name: str) -> list[Row]:
        """The rows of a section of `SECTIONS`, named with the shape and the number of environments."""
        measured: dict[str, Callable[[], list[Row]]] = {
            "decode": self.decode,
            "token-step": self.token_step,
            "iteration": self.whole_iteration,
            "update": self.update,
            "host": self.host,
            "log-probs": self.log_probs,
            "exactness": self.exactness,
        }
        return [replace(row, name=f"{self.shape} x {self.sizes.rows}: {row.name}") for row in measured[name]()]

    def decode(self) -> list[Row]:
        """Tokens a second of the collector, log-probabilities and values included, against ``generate``."""
        sizes, agent = self.sizes, self._agent()
        collector = sizes.collector(agent)
        cast = hardware.bf16_copy(agent.policy.model)
        prompts = sizes.prompt_ids(sizes.rows).to(self.device)
        timings = self._take_turns(
            {
                "ours": lambda: _collect(collector, sizes.rows),
                "generate": lambda: generate(cast, prompts, sizes.new_tokens, "float32"),  # it is bf16 as it is
            }
        )
        ours, theirs = timings["ours"], timings["generate"]
        target = ">= 10" if self.shape == "gpt2-small" else ""
        note = "of a model whose weights are bf16, its dynamic cache"
        return [
            Row("rollout", "tokens / s", ours.rate, "generate()", theirs.rate, speed_ratio(ours, theirs), target, note)
        ]

    def token_step(self) -> list[Row]:
        """A step of the static decoder against the least it can be: the bytes' time, or the bare forward's."""
        sizes, agent = self.sizes, self._agent()
        decoder = StaticDecoder(agent.policy, sizes.rows, self.capacity)
        generator = torch.Generator(self.device).manual_seed(0)
        bare = hardware.BareSteps(agent.policy.model, sizes)
        timings = self._take_turns(
            {
                "ours": lambda: hardware.token_steps(decoder, sizes, generator),
                "bare": bare.run,
                "copy": hardware.copying(self.device, 2**20 if self.quick else 2**32),
            },
            before={"ours": lambda: hardware.prompts_into(decoder, sizes), "bare": bare.rewind},
        )
        bandwidth, num_bytes = timings["copy"].rate, hardware.step_bytes(agent.policy.model, sizes)
        reading, forward, ours = num_bytes / bandwidth, 1 / timings["bare"].rate, 1 / timings["ours"].rate
        note = f"reading {num_bytes / 1e9:.3g} GB at {bandwidth / 1e12:.3g} TB/s: {1e3 * reading:.3g} ms; "
        if bare.is_graph or not self.on_gpu:
            floor = max(reading, forward)
            note += f"bare forward{' as one graph' if bare.is_graph else ''}: {1e3 * forward:.3g} ms"
        else:  # launched one by one it would flatter us
            floor = reading
            note += "the bare forward could not be captured"
        return [Row("token step", "ms", 1e3 * ours, "floor", 1e3 * floor, ours / floor, "<= 2", note)]

    def whole_iteration(self) -> list[Row]:
        """A PPO iteration and its peak memory beside those of other libraries, each in a process of its own."""
        ours = in_fresh_process(our_ppo, self.sizes, self.device, self.repeats)
        rows = [self._beside("TRL PPO", ours, ">= 5", "bf16")]
        if self.sizes.family == "gpt2":  # elsewhere SB3, which reads whole prefixes in float32, takes an hour
            rows.append(self._beside("SB3 PPO", ours, ""))
        return [row for pair in rows for row in pair]

    def update(self) -> list[Row]:
        """Model FLOP utilisation of an epoch, optimiser step included, over the rate of a large product."""
        agent = self._agent()
        product = hardware.multiplying(self.device, 64 if self.quick else 8192)
        timings = self._take_turns({"ours": update_epoch(agent), "product": product})
        flops = hardware.update_flops(agent.policy.model, self.sizes)
        epochs, rate = timings["ours"], timings["product"].rate
        used = flops / statistics.median(epochs.seconds)
        target = ">= 45" if self.shape == "llama-1b" else ""
        note = f"{flops / 1e12:.3g} TFLOP an epoch, {epochs.rate:,.0f} new tokens / s"
        share = 100 * used / rate
        product_rate = rate / 1e12
        return [Row("update, FLOP utilisation", "%", share, "TFLOP/s of a product", product_rate, None, target, note)]

    def host(self) -> list[Row]:
        """What of a rollout is not the device's: beside the same prefill and steps that nobody waits for."""
        sizes, agent = self.sizes, self._agent()
        collector = sizes.collector(agent)
        decoder = decoder_for(agent.policy, sizes.rows, self.capacity)
        generator = torch.Generator(self.device).manual_seed(0)

        def device_alone() -> int:
            hardware.prompts_into(decoder, sizes)
            return hardware.token_steps(decoder, sizes, generator) * sizes.rows

        timings = self._take_turns({"ours": lambda: _collect(collector, sizes.rows), "device": device_alone})
        turns = zip(timings["ours"].seconds, timings["device"].seconds, strict=True)
        share = statistics.median(1 - device / ours for ours, device in turns)
        return [Row("host and environment, share of a rollout", "%", 100 * share, target="<= 10")]

    def log_probs(self) -> list[Row]:
        """The peak of log-probabilities, entropies and gradients of a rollout's actions."""
        sizes = self.sizes
        size = (sizes.width, sizes.vocab_size, sizes.tokens)
        peak, bound = hardware.log_probs_memory_mb(self.device, *size), hardware.log_probs_bound_mb(*size)
        whole = 4 * sizes.tokens * sizes.vocab_size / 1024**2
        target, note = f"<= {bound:.0f}", "" if self.on_gpu else "on a CPU: by how much the process's peak grew"
        return [Row("log-probabilities, peak memory", "MB", peak, "all logits, once", whole, None, target, note)]

    def exactness(self) -> list[Row]:
        """The largest difference of log-probabilities decoded through the cache from those of one full forward."""
        bounds: dict[Precision, str] = {"float32": "<= 0.0001", "bf16": "<= 0.05"}
        return [
            Row(f"cached - uncached log-probabilities, {precision}", "nats", self._difference(precision), target=bound)
            for precision, bound in bounds.items()
        ]

    # ------------------------------------------------------------------------------------------------------

    def _agent(self, precision: Precision = "bf16") -> Any:
        # Without a reference: what is measured here asks none.
        return self.sizes.agent(self.device, precision, model=self.model, kl_coef_per_sequence=0.0)

    def _take_turns(
        self, contenders: Mapping[str, Contender], before: Mapping[str, Callable[[], object]] | None = None
    ) -> dict[str, Timing]:
        return take_turns(contenders, self.repeats, self.on_gpu, before)

    @torch.no_grad()
    def _difference(self, precision: Precision) -> float:
        agent, lengths = self._agent(precision), self.sizes.lengths(2 * self.sizes.rows)
        collector = self.sizes.collector(agent, lengths)
        collector.make_decoder = StaticDecoder
        episodes = collector.collect(len(lengths))  # twice the rows: each starts anew while others go on
        assert episodes is not None
        full_BT, _ = agent.rescore(agent.policy, episodes)
        return float((full_BT - episodes.log_probs_BT)[episodes.action_mask_BT].abs().max())

    def _beside(self, name: str, ours: Mapping[str, float], target: str, *precision: Precision) -> list[Row]:
        """Speed and memory beside a library's; without a ratio where it is missing or had too little memory."""
        peer = next(peer for peer in PEERS if peer.name == name)
        theirs: Mapping[str, float] = {}
        missing, note = peer.missing(), f"{peer.note}; {'bf16' if precision else 'float32, it knows no other'}"
        if missing:
            note = f"{name}: {missing} is not installed (pip install 'textgen-env[peers]')"
        else:
            try:
                theirs = in_fresh_process(peer.run, self.sizes, self.device, self.repeats, *precision)
            except torch.OutOfMemoryError as error:
                note = f"{name} had too little memory: {str(error).splitlines()[0]}"

        def row(what: str, unit: str, key: str, goal: str) -> Row:
            value, base = ours[key], theirs.get(key)
            return Row(
                what, unit, value, name, base, None if base is None else value / base, goal if base else "", note
            )

        return [
            row("PPO iteration", "tokens / s", "tokens_per_second", target),
            row("PPO iteration, peak memory", "MB", "peak_memory_mb", ""),
        ]


def our_ppo(sizes: Workload, device: str, repeats: int) -> dict[str, float]:
    """Whole iterations of our PPO, reference included, measured as those of `benchmarks.peers` are."""
    torch.set_num_threads(1)
    agent = sizes.agent(device, "bf16")
    timings = take_turns({"ours": functools.partial(iteration, agent)}, repeats, device.startswith("cuda"))
    return {"tokens_per_second": timings["ours"].rate, "peak_memory_mb": peak_memory_mb(device)}


def _collect(collector: Collector, episodes: int) -> int:
    trajectories = collector.collect(episodes)
    assert trajectories is not None
    return trajectories.num_tokens
