"""Measuring: contenders take turns, so that a machine that slows down slows them alike."""

from __future__ import annotations

import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium
import stable_baselines3
import torch
import transformers

Contender = Callable[[], float]
"""Does its work once and returns how many units (tokens, say) that was."""


def check_cuda(mend: str) -> None:
    """Refuse to go on where there is no GPU that torch can use.

    Raises:
        ValueError: with what to do about it; ``mend`` is what else could be done.
    """
    if torch.version.cuda is None:
        raise ValueError(f"torch {torch.__version__} has no CUDA: install a build that has (pytorch.org); {mend}")
    if not torch.cuda.is_available():
        raise ValueError(f"torch finds no GPU: look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES; {mend}")


@dataclass(eq=False)
class Timing:
    """What one contender took, one entry a repeat."""

    on_gpu: bool
    units: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @classmethod
    def added(cls, parts: Mapping[Timing, int], units: list[float]) -> Timing:
        """What doing some things in a row would take, turn by turn, each so many times, for so many units."""

        def total(seconds: Callable[[Timing], list[float]]) -> list[float]:
            turns = zip(*(seconds(part) for part in parts), strict=True)
            return [sum(n * s for n, s in zip(parts.values(), turn, strict=True)) for turn in turns]

        on_gpu = next(iter(parts)).on_gpu
        return cls(on_gpu, units, total(lambda timing: timing.cpu), total(lambda timing: timing.wall))

    @property
    def seconds(self) -> list[float]:
        """What counts: seconds of CPU time (other processes do not), or of wall time where a GPU does the work."""
        return self.wall if self.on_gpu else self.cpu

    @property
    def rate(self) -> float:
        """Median units a second."""
        return statistics.median(n / seconds for n, seconds in zip(self.units, self.seconds, strict=True))

    def measure(self, contender: Contender) -> None:
        """Run once and write it down."""
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        self.units.append(contender())
        self._wait()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def take_turns(
    contenders: Mapping[str, Contender],
    repeats: int,
    on_gpu: bool,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, Timing]:
    """One unmeasured run each, then A B A B …

    Args:
        contenders: by name.
        repeats: measured turns of each.
        on_gpu: whether a GPU does the work.
        before: what some of them need done before every run of theirs, unmeasured.
    """
    timings = {name: Timing(on_gpu) for name in contenders}
    ready = before or {}
    for turn in range(repeats + 1):
        for name, contender in contenders.items():
            if name in ready:
                ready[name]()
            if turn:
                timings[name].measure(contender)
            else:
                contender()
    return timings


def speed_ratio(ours: Timing, baseline: Timing) -> float:
    """How many times faster ``ours`` does a unit: the median over turns, each against its neighbour."""
    turns = zip(ours.units, ours.seconds, baseline.units, baseline.seconds, strict=True)
    return statistics.median((n / seconds) / (base / base_seconds) for n, seconds, base, base_seconds in turns)


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a module's function in a new interpreter, which ends afterwards and gives its memory back."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peak_memory_mb(device: str = "cpu") -> float:
    """The most memory this process ever held, in MB; on a GPU, the most that torch had there for tensors.

    Linux hands ``ru_maxrss`` of a parent on to the process it starts; ``VmHWM`` begins anew.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1024**2
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if platform.system() == "Darwin" else 1024)


def cpu_flags() -> list[str]:
    """Those of the CPU's instruction sets that matter here; empty where the system does not tell."""
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    found = set(re.findall(r"\w+", _cpuinfo("flags")))
    return [flag for flag in known if flag in found]


def circumstances(device: str) -> dict[str, Any]:
    """Everything a reader needs to judge the figures."""
    gpu: dict[str, Any] = {}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        gpu = {"device_memory_gb": round(properties.total_memory / 1024**3, 1), "cuda": torch.version.cuda}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpu_flags": cpu_flags(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        **gpu,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gymnasium": gymnasium.__version__,
        "stable_baselines3": stable_baselines3.__version__,
    }


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{key}\s*:\s*(.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else ""


def _commit() -> str | None:
    """The commit of the code, with "+" where files differ from it; None outside a git checkout."""

    def git(*arguments: str) -> str:
        root = Path(__file__).resolve().parents[1]
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
