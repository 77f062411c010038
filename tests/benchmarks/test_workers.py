import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.workers import ProcessDied, cores, side_by_side


def threads_and_process(item):
    return item, os.environ["OMP_NUM_THREADS"], os.getpid()


def die(item):
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 2:
        sys.exit(7)
    return item


def write_and_wait(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def gone(process):
    """Whether it ends within some seconds. (A zombie has ended: it waits for whoever adopted it.)"""
    stat = Path(f"/proc/{process}/stat")
    for _ in range(200):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "2")


def test_each_item_has_a_process_of_its_own_with_one_thread():
    found = dict(side_by_side(threads_and_process, [10, 20, 30], workers=2))
    assert {item: result[:2] for item, result in found.items()} == {item: (item, "1") for item in (10, 20, 30)}
    assert len({process for _, _, process in found.values()} | {os.getpid()}) == 4


def test_a_process_that_dies_takes_nobody_along():
    found = dict(side_by_side(die, [0, 1, 2, 3], workers=2))
    assert found[0] == 0
    assert found[3] == 3
    assert isinstance(found[1], ProcessDied)
    assert "SIGKILL" in str(found[1])
    assert "memory" in str(found[1])
    assert "exit code 7" in str(found[2])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """Else an interrupted benchmark would go on beside the one that resumes it."""
    script = (
        "from benchmarks.workers import side_by_side\n"
        "from tests.benchmarks.test_workers import write_and_wait\n"
        f"list(side_by_side(write_and_wait, [{str(tmp_path / 'process')!r}], 1))\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    while not (tmp_path / "process").exists() or not (tmp_path / "process").read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert gone(int((tmp_path / "process").read_text()))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_when_nobody_waits_for_them(tmp_path):
    results = side_by_side(die_or_wait, [None, str(tmp_path / "process")], workers=2)
    next(results)
    while not (tmp_path / "process").exists() or not (tmp_path / "process").read_text():
        time.sleep(0.05)
    results.close()
    assert gone(int((tmp_path / "process").read_text()))


def die_or_wait(path):
    if path is not None:
        write_and_wait(path)


def test_cores():
    assert 1 <= cores() <= os.cpu_count()
