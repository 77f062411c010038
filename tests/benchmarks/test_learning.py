"""The learning benchmark: its statistics, and that it runs from end to end."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import learning


def test_interval_over_seeds_is_students() -> None:
    mean, half = learning.over_seeds([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.303 / math.sqrt(3))  # t(2 degrees of freedom), standard deviation 1


def test_one_seed_has_no_interval() -> None:
    assert math.isnan(learning.over_seeds([1.0])[1])


def test_a_tiny_run_reports_every_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    options = ["--seeds", "2", "--tokens", "100", "--warm-start-epochs", "0.02", "--prompts", "3", "--json", str(path)]
    assert learning.main(["news_summary", *options]) == 0
    report = json.loads(path.read_text())
    assert [seed["seed"] for seed in report["seeds"]] == [0, 1]
    for seed in report["seeds"]:
        gain = seed["sampled"]
        assert gain["gain"] == pytest.approx(gain["after"] - gain["before"])
        assert seed["tokens"] >= 100
    assert capsys.readouterr().out.count("seed ") == 2


def test_endings_need_data_and_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        learning.main(["endings"])
    assert "--data and --model" in capsys.readouterr().err
