import json

import pytest
import torch

from benchmarks.measure import Timing, speed_ratio
from benchmarks.table import Row, table
from benchmarks.throughput import main
from benchmarks.workload import Workload

SIZES = Workload(layers=1, width=16, heads=2, vocab_size=32, prompt_tokens=3, new_tokens=6, shortest=2, rows=4)


def test_quick_run_measures_every_row(tmp_path):
    threads = torch.get_num_threads()
    main(["--quick", "--json", str(tmp_path / "figures.json")])
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    names = " | ".join(row["name"] for row in report["rows"])
    parts = ("rollout, 8 tokens", "16 episodes on 4 rows", "update epoch, float32", "PPO iteration", "bf16", "share")
    for part in (*parts, "environment alone", "peak memory"):
        assert part in names
    for row in report["rows"]:
        assert row["value"] > 0
        assert row["ratio"] is None or row["ratio"] > 0
        assert row["baseline_value"] is None or row["baseline_value"] > 0
    assert {"cpu", "torch", "torch_threads", "commit", "date"} <= set(report["circumstances"])
    assert report["circumstances"]["torch_threads"] == 1
    assert torch.get_num_threads() == threads


def test_episodes_end_at_the_given_lengths_and_nowhere_else():
    agent = SIZES.agent("cpu", "float32")
    lengths = [2, 6, 3, 5, 4, 4, 6, 2, 3]
    assert SIZES.collector(agent, lengths).collect(len(lengths)).lengths_B.tolist() == lengths
    fixed = SIZES.collector(agent).collect(4)
    assert fixed.lengths_B.tolist() == [SIZES.new_tokens] * 4
    assert fixed.prompt_lengths_B.tolist() == [SIZES.prompt_tokens] * 4


def test_ratio_is_the_median_of_neighbouring_turns():
    # The machine slowed down tenfold in the second turn: both suffered, the ratio does not.
    ours = Timing(on_gpu=False, units=[100, 100, 100], cpu=[1.0, 10.0, 1.0], wall=[9, 9, 9])
    base = Timing(on_gpu=False, units=[50, 50, 50], cpu=[1.0, 10.0, 1.0], wall=[9, 9, 9])
    assert speed_ratio(ours, base) == 2
    assert ours.rate == 100
    assert Timing(on_gpu=True, units=[90], cpu=[1], wall=[9]).rate == 10


@pytest.mark.parametrize(
    ("ratio", "target", "met"), [(1.1, ">= 1.05", True), (1.0, ">= 1.05", False), (1.2, "<= 1.25", True), (1, "", None)]
)
def test_target_judges_the_ratio(ratio, target, met):
    row = Row("rollout", "tokens", 1000.0, "generate()", 900.0, ratio, target, note="a footnote")
    assert row.met is met
    text = table([row])
    assert "[1] a footnote" in text
    assert ("NO" in text) is (met is False)


def test_target_without_a_baseline_judges_the_value():
    assert Row("share", "%", 2.5, target="<= 3").met
    assert not Row("share", "%", 3.5, target="<= 3").met


def test_without_cuda_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "has no CUDA: install a build that has" in capsys.readouterr().err
