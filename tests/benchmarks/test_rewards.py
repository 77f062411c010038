import json

import pytest
import torch

from benchmarks.rewards import QUICK, Benchmark, main


def test_quick_run_measures_every_row(tmp_path):
    threads = torch.get_num_threads()
    main(["--quick", "--json", str(tmp_path / "figures.json")])
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    names = " | ".join(row["name"] for row in report["rows"])
    for part in (
        "headlines",
        "articles",
        "called, cost",
        "environment, cost",
        "0.6 * rouge_l",
        "Cached",
        "BERT",
        "GPT-2",
    ):
        assert part in names
    assert all(row["value"] > 0 and row["baseline_value"] > 0 and row["ratio"] > 0 for row in report["rows"])
    assert {"cpu", "torch", "torch_threads", "commit", "date"} <= set(report["circumstances"])
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("which", ["classifier", "likelihood"])
def test_the_models_by_hand_give_the_scorers_scores(which):
    """So the two do the same work, and their times can be compared."""
    benchmark = Benchmark(QUICK, repeats=1)
    scorer, bare = getattr(benchmark, which)()
    scores = bare()
    assert scorer(completions=benchmark.model_texts) == pytest.approx(scores, abs=1e-5)
    assert len(set(scores)) > 1
