import gzip
import json
import math

import pytest

from benchmarks.records import gather, kind, read, write_compact
from tests.benchmarks.made_up import cell, failed, ladder, line, write


def test_whose_a_contender_is():
    assert [kind(name) for name in ("ppo", "ilql", "my_own")] == ["ours"] * 3
    assert [kind(name) for name in ("sb3_ppo", "trl_ppo", "trl_rloo", "trl_grpo")] == ["peer"] * 4
    assert [kind(name) for name in ("supervised", "best_of_n", "random", "expert_iteration")] == ["baseline"] * 4


# --- files ------------------------------------------------------------------------------------------------


def test_of_a_run_made_again_the_last_line_counts(tmp_path):
    first = write(tmp_path / "a.jsonl", [line(normalised=0.1), line(seed=1), failed(seed=1)])
    again = write(tmp_path / "b.jsonl", [line(seed=1, normalised=0.3)])
    found = read([first, again])
    assert [(run["seed"], run["normalised"]) for run in found] == [(0, 0.1), (1, 0.3)]


def test_packed_files_are_small_say_the_same_and_are_the_same_bytes(tmp_path):
    runs = [line(seed=seed, normalised=0.5, entropy=1 / 3) for seed in range(50)]
    plain, packed, again = (tmp_path / name for name in ("a.jsonl", "a.jsonl.gz", "b.jsonl.gz"))
    write_compact(plain, runs)
    for path in (packed, again):
        write_compact(path, runs)
    assert read([plain]) == read([packed])
    assert packed.read_bytes() == again.read_bytes()
    assert packed.stat().st_size < plain.stat().st_size / 10
    assert read([packed])[0]["entropy"] == 0.33333
    kept = json.loads(json.dumps(runs[0]))
    assert {**read([packed])[0], "entropy": 1 / 3} == kept


def test_what_is_no_file_of_runs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"make runs with 'python -m benchmarks run --output .*none.jsonl'"):
        read([tmp_path / "none.jsonl"])
    with pytest.raises(ValueError, match=r"empty.jsonl holds no runs"):
        read([write(tmp_path / "empty.jsonl", [])])
    other = {name: value for name, value in line().items() if name not in ("contender", "tokens")}
    with pytest.raises(ValueError, match="run 2: no contender and no tokens; is it a file of benchmark runs"):
        read([write(tmp_path / "other.jsonl", [line(), other])])
    (tmp_path / "torn.jsonl").write_text('{"task": \n' + json.dumps(line()) + "\n")
    with pytest.raises(ValueError, match=r"torn.jsonl, line 1"):
        read([tmp_path / "torn.jsonl"])
    for content in (b"{}", gzip.compress(b"{}")[:-4]):
        (tmp_path / "bad.jsonl.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.jsonl.gz cannot be unpacked"):
            read([tmp_path / "bad.jsonl.gz"])


# --- what is wrong ----------------------------------------------------------------------------------------


def test_a_complete_file_has_no_faults():
    records = gather(ladder())
    assert records.faults == []
    assert records.tasks == ["Reverse", "Add", "Free"]
    assert records.contenders == ["ppo", "dqn", "trl_ppo", "supervised", "ilql"]
    assert ("Add", "ilql") not in records.runs  # some contenders cannot play some tasks
    assert len(records.all_runs()) == 5 * 13


def test_a_seed_that_others_have_is_missed():
    records = gather([*cell(0.1, 0.2, 0.3), *cell(0.4, 0.5, contender="dqn")])
    assert [str(fault) for fault in records.faults] == ["Reverse · dqn · seed 2: missing"]
    assert len(records.runs["Reverse", "dqn"]) == 2


def test_seeds_that_nobody_has_are_missed_if_they_are_asked_for():
    records = gather(cell(0.1, 0.2), num_seeds=4)
    assert [str(fault) for fault in records.faults] == [f"Reverse · ppo · seed {seed}: missing" for seed in (2, 3)]
    assert gather(cell(0.1, 0.2), num_seeds=1).faults == []


def test_a_failed_run_is_named_with_its_traceback():
    (fault,) = gather([line(), failed(seed=1), *cell(0.1, 0.2, task="Add")]).faults
    assert str(fault) == "Reverse · ppo · seed 1: failed: RuntimeError: out of luck"
    assert fault.details.startswith("Traceback")


def test_a_contender_that_failed_with_every_seed_is_still_there():
    records = gather([failed(), *cell(0.1, contender="dqn")])
    assert records.runs["Reverse", "ppo"] == []


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_a_failed_run(score):
    (fault,) = gather([line(score=score)]).faults
    assert f"its score is {score}" in str(fault)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"budget": 0.5}, "Reverse: its runs differ in their budget"),
        ({"setup": {**line()["setup"], "total_tokens": 99}}, "Reverse: its runs differ in their setup"),
        ({"optimum": 4.0}, "Reverse: its runs differ in their optimum"),
        ({"random": 0.0}, "Reverse: its runs differ in their random"),
        ({"preset": {"learning_rate": 9.0}}, "Reverse · ppo: its runs differ in their preset"),
    ],
)
def test_runs_that_do_not_compare_are_a_fault(changes, where):
    (fault,) = gather([line(), line(seed=1, **changes)]).faults
    assert str(fault).startswith(where)


def test_what_may_differ_is_no_fault():
    other = {"preset": {"clip_range": 0.2}, "circumstances": {"commit": "another"}}
    assert gather([line(), line(contender="dqn", **other), line("Add", setup={"solved": 0.5})]).faults == []


def test_new_runs_go_with_kept_ones(tmp_path):
    runs = [line(seed=seed, random=0.07924663615873234) for seed in (0, 1)]
    write_compact(tmp_path / "kept.jsonl.gz", runs[:1])
    fresh = write(tmp_path / "fresh.jsonl", runs[1:])
    assert gather(read([tmp_path / "kept.jsonl.gz", fresh])).faults == []


def test_a_difference_in_the_last_digit_of_a_float_is_none():
    """Kept runs are rounded, new ones and other libraries' sums are not: else 0.3 would beat 0.1 + 0.2, or lose."""
    records = gather([line(normalised=0.1 + 0.2), line(contender="dqn", normalised=0.3)])
    assert records.runs["Reverse", "ppo"][0]["normalised"] == records.runs["Reverse", "dqn"][0]["normalised"] == 0.3
