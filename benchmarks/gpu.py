"""Whether decoding and updates run at the speed of a GPU: `python -m benchmarks.gpu --json gpu.json`.

Every figure stands beside what the same run measured as its baseline: transformers' `generate()`, TRL's and SB3's
trainers, a bare CUDA graph, the device's own bandwidth and matrix rate. Contenders take turns, medians count, and the
device is waited for before and after each measurement; whole iterations and their memory have a process of their own.
bf16, random weights, 64 prompt and 128 new tokens.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from agents.model_source import load_model
from benchmarks.gpu_cost import SECTIONS, estimated_seconds
from benchmarks.gpu_learning import learning
from benchmarks.gpu_rows import Benchmark
from benchmarks.measure import check_cuda, circumstances
from benchmarks.table import Row, one_thread, publish, write
from benchmarks.workload import Workload

_COMMON: dict[str, Any] = {"prompt_tokens": 64, "new_tokens": 128, "shortest": 16, "micro_rows": 64}
SHAPES: Mapping[str, Workload] = {
    "gpt2-small": Workload(layers=12, width=768, heads=12, vocab_size=50_257, **_COMMON),
    "llama-1b": Workload(  # as Llama 3.2 1B
        layers=16, width=2048, heads=32, kv_heads=8, inner=8192, vocab_size=128_256, family="llama", **_COMMON
    ),
}
ENVIRONMENTS = (64, 256)
_QUICK: dict[str, Any] = {
    **{"layers": 1, "width": 32, "heads": 4, "inner": 64, "vocab_size": 64, "epochs": 2},
    **{"prompt_tokens": 4, "new_tokens": 6, "shortest": 2, "micro_rows": 2},
}


def check_device(device: str, *, quick: bool) -> None:
    """Refuse a device that cannot be measured here.

    Raises:
        ValueError: with what to do about it.
    """
    mend = "to see that the command runs, add --device cpu --quick"
    if device == "cpu":
        if not quick:
            raise ValueError(
                "--device cpu needs --quick: at full size this takes days (python -m benchmarks.throughput)"
            )
        return
    check_cuda(mend)
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"{torch.cuda.get_device_name()} has no bf16: take one of compute capability 8.0 or more; {mend}"
        )


def sections(
    shapes: Mapping[str, Workload], environments: Sequence[int], names: Sequence[str], options: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """What is to be measured, by name, in the order of the table."""
    for shape, sizes in shapes.items():
        model = load_model(sizes.config(), seed=0)
        for rows in environments:
            benchmark = Benchmark(
                shape, replace(sizes, rows=rows), model, options.repeats, options.device, options.quick
            )
            for name in names:
                yield f"{shape} x {rows}: {name}", functools.partial(benchmark.section, name)
    if options.learning:
        budget = 0.02 if options.quick else 1.0
        yield "learning", functools.partial(learning, options.device, options.learning, budget)


def attempted(parts: Iterable[tuple[str, Callable[[], list[Row]]]], failures: dict[str, str]) -> Iterator[list[Row]]:
    """The rows of each part; one that fails is written down with its traceback, and the others go on."""
    for name, measured in parts:
        began = time.perf_counter()
        try:
            rows = measured()
        except Exception as error:
            failures[name] = traceback.format_exc()
            traceback.clear_frames(error.__traceback__)  # they hold the part's tensors
            print(f"FAILED: {name}\n{failures[name]}", file=sys.stderr)
        else:
            print(f"measured: {name}, {time.perf_counter() - began:.0f} s", file=sys.stderr)
            yield rows
        gc.collect()  # an agent knows itself: its memory is free only now
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _without_rows(sizes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sizes.items() if name != "rows"}  # the environments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="default: all")
    parser.add_argument("--rows", nargs="+", default=list(SECTIONS), choices=SECTIONS, help="default: all")
    parser.add_argument("--envs", nargs="+", type=int, help=f"environments side by side (default: {ENVIRONMENTS})")
    parser.add_argument("--repeats", type=int, default=5, help="measured turns of every contender (default: 5)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="CUDA_VISIBLE_DEVICES says which GPU")
    parser.add_argument(
        "--learning",
        nargs="?",
        type=int,
        const=5,
        default=0,
        metavar="SEEDS",
        help="run PPO on Reverse on the CPU and on the device, too (5 seeds; about a minute a seed)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after every part: what is there stays")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, the figures mean nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. 0: all is measured; 1: some parts failed, the rest is in the table."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.repeats < 1 or options.learning == 1 or options.learning < 0:
        parser.error("--repeats must be at least 1, --learning at least 2 seeds: one alone has no interval")
    shapes = {name: SHAPES[name] for name in options.shapes}
    environments = options.envs or ((4,) if options.quick else ENVIRONMENTS)
    if options.quick:
        shapes = {name: replace(sizes, **_QUICK, kv_heads=sizes.kv_heads and 2) for name, sizes in shapes.items()}
        options.repeats = 1
    try:
        check_device(options.device, quick=options.quick)
    except ValueError as error:
        parser.error(str(error))
    at_once = next(iter(shapes.values())).micro_rows or 1
    if any(rows < 1 or rows % at_once for rows in environments):
        parser.error(f"--envs: multiples of {at_once}, the episodes of one forward and backward in an update")
    seconds = 120.0 * options.learning + sum(
        estimated_seconds(replace(sizes, rows=rows), options.rows, options.repeats)
        for sizes in shapes.values()
        for rows in environments
    )
    print(f"estimated cost: {max(1, round(seconds / 60))} min, a guess from the counted work", flush=True)

    began = time.perf_counter()
    where = circumstances(options.device)
    failures: dict[str, str] = {}
    facts: dict[str, Any] = {
        "workloads": {name: _without_rows(asdict(sizes)) for name, sizes in shapes.items()},
        "environments": list(environments),
        "repeats": options.repeats,
        "precision": "bf16",
        "failures": failures,
    }
    rows: list[Row] = []
    with one_thread():
        where["torch_threads"] = torch.get_num_threads()
        for found in attempted(sections(shapes, environments, options.rows, options), failures):
            # Targets speak of the real sizes.
            rows += [replace(row, target="") for row in found] if options.quick else found
            facts["wall_seconds"] = round(time.perf_counter() - began)
            if options.json:
                write(rows, where, facts, options.json)
    publish(rows, where, facts, options.json)
    for name in failures:
        print(f"FAILED: {name} (its traceback is above, and in the JSON)", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
