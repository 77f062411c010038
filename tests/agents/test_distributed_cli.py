"""`textgen train` as the launchers start it, and the commands of docs/distributed.md."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import snippets
from tests.agents.ranks import ROOT, TIME_LIMIT

TASK = shlex.split("--env textgen_env/Reverse-v0 --output run")

SMALL = shlex.split(
    "--layers 1 --width 32 --heads 2 --warm-start-epochs 0.05 --total-tokens 40 --episodes-per-rollout 16 --num-envs 4 "
    "--epochs 1 --eval-prompts 2 --device cpu"
)
COMMANDS = [line for line in snippets.commands("docs/distributed.md") if line.startswith("torchrun")]
pytestmark = pytest.mark.slow


def start(words: list[str], folder: Path) -> "subprocess.Popen[str]":
    """A launcher's command with this interpreter."""
    module = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}[words[0]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", module, *words[1:]],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        out, error = process.communicate(timeout=TIME_LIMIT)
    finally:
        process.kill()
    return process.returncode, out, error


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def processes_of(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["resolved"]["processes"]


def test_the_page_s_commands(tmp_path):
    """In their order; the second goes on with what the first has left."""
    assert len(COMMANDS) == 3
    for line in COMMANDS:
        words = shlex.split(line)
        small = ["--total-tokens", "200"] if "--resume" in words else SMALL  # a rollout of both ranks has about 100
        code, out, error = finish(start([*words, *small], tmp_path))
        assert code == 0, error[-3000:]
        assert out.splitlines()[0].split(maxsplit=1) == ["world", "2 processes (gloo)"]
        assert out.count("report: ") == 1  # rank 0 alone prints
    assert json.loads((tmp_path / "run" / "results.json").read_text())["tokens"] >= 200
    assert processes_of(tmp_path / "sharded") == 2


def test_two_machines(tmp_path):
    """Two launchers that meet over the loopback."""
    port = free_port()
    command = f"--nproc-per-node 1 --master-addr 127.0.0.1 --master-port {port} -m agents train"
    both = [
        start(["torchrun", "--nnodes", "2", "--node-rank", str(node), *shlex.split(command), *TASK, *SMALL], tmp_path)
        for node in (0, 1)
    ]
    (first, out, error), (second, other, _) = (finish(process) for process in both)
    assert (first, second) == (0, 0), error[-3000:]
    assert out.startswith("world")
    assert other == ""
    assert processes_of(tmp_path / "run") == 2


def test_accelerate_launch(tmp_path):
    words = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", free_port()]
    code, out, error = finish(start([*words, "-m", "agents", "train", *TASK, *SMALL], tmp_path))
    assert code == 0, error[-3000:]
    assert out.splitlines()[0].split(maxsplit=1) == ["world", "2 processes (gloo)"]


def test_accelerate_launch_that_forms_a_world_of_one_in_silence(tmp_path):
    words = ["accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "agents", "train", *TASK, *SMALL]
    code, _, error = finish(start(words, tmp_path))
    assert code != 0
    assert "start them with torchrun" in error
    assert not (tmp_path / "run").exists()


def test_other_commands_say_that_they_run_alone(tmp_path):
    words = ["torchrun", "--nproc-per-node", "2", "--master-port", free_port(), "-m", "agents", "list"]
    code, out, error = finish(start(words, tmp_path))
    assert code != 0
    assert out == ""
    assert "rank 0: error: only 'textgen train' runs in several processes" in error
