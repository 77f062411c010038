"""Tests in several processes: a function runs on every rank of a gloo world on this machine, and reports."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT = 400
"""Seconds after which a world that waits for itself is ended."""


def launch(ranks: int, *command: str, folder: Path, time_limit: float = TIME_LIMIT, **changes: str) -> Any:
    """Run a command under torchrun, one thread a process; the finished process with what it wrote."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **changes}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", "0"]
    return subprocess.run(
        [*torchrun, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=time_limit,
    )


def on_ranks(ranks: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What a module's function, given (folder, *arguments), returns on each rank of a world."""
    (folder / "call.pkl").write_bytes(pickle.dumps((function.__module__, function.__qualname__, arguments)))
    done = launch(ranks, "-m", "tests.agents.ranks", str(folder), folder=folder)
    assert done.returncode == 0, done.stderr[-6000:]
    return [pickle.loads((folder / f"rank-{rank}.pkl").read_bytes()) for rank in range(ranks)]


def main() -> None:
    import importlib

    import torch

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    module, name, arguments = pickle.loads((folder / "call.pkl").read_bytes())
    found = getattr(importlib.import_module(module), name)(folder, *arguments)
    (folder / f"rank-{os.environ['RANK']}.pkl").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()
