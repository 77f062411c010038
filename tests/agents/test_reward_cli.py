"""``textgen reward``: judgements in, a folder out, texts scored by it."""

import json
import random
import shlex

import pytest
from transformers import AutoModelForSequenceClassification

from agents.cli import main

TINY = shlex.split(
    "--layers 1 --width 16 --heads 2 --vocab-size 280 --max-length 48 --learning-rate 1e-2 --epochs 4 "
    "--batch-size 16 --evaluations 4 --device cpu"
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The longer one is preferred."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(120):
            short, long = draw.randint(1, 3), draw.randint(5, 8)
            pair = {"prompt": f"question {number}", "chosen": "yes " * long, "rejected": "yes " * short}
            file.write(json.dumps(pair) + "\n")
    return path


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"id": n, "prompt": "question", "completion": "yes " * length} for n, length in enumerate((2, 7))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("extra", [[], ["--members", "2", "--pessimism", "1"]], ids=["model", "ensemble"])
def test_train_then_score(pairs, answers, tmp_path, capsys, extra):
    folder = tmp_path / "reward"
    assert main(["reward", "train", "--data", str(pairs), "--output", str(folder), *TINY, *extra]) == 0
    shown = capsys.readouterr().out
    assert "held out" in shown
    assert "accuracy 1.000 [1.000, 1.000]" in shown
    report = json.loads((folder / "reward.json").read_text())
    assert len(report["members"]) == (2 if extra else 1)
    assert report["members"][0]["validation"]["calibration"]["ece"] < 0.2
    AutoModelForSequenceClassification.from_pretrained(folder / "member-0" if extra else folder)
    capsys.readouterr()

    assert main(["reward", "score", str(folder), "--data", str(answers)]) == 0
    scored = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["id"] for row in scored] == [0, 1]
    assert scored[1]["score"] > scored[0]["score"]
    assert ("score_std" in scored[0]) == bool(extra)
    output = tmp_path / "scored.jsonl"
    asked = ["reward", "score", str(folder), "--data", str(answers), "--output", str(output), "--field", "rm"]
    assert main(asked) == 0
    assert [json.loads(line)["rm"] for line in output.read_text().splitlines()] == [row["score"] for row in scored]
    assert main(asked) == 2  # it is there already


def test_scores_are_normalised_to_the_samples_named(pairs, answers, tmp_path, capsys):
    folder = tmp_path / "reward"
    asked = ["--data", str(pairs), "--output", str(folder), "--normalise-to", str(answers), "--quiet", *TINY]
    assert main(["reward", "train", *asked]) == 0
    assert capsys.readouterr().out == ""
    assert main(["reward", "score", str(folder), "--data", str(answers)]) == 0
    scored = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert scored == pytest.approx([-1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --output {tmp}/out", "say --data"),
        ("train --data {pairs}", "say --output"),
        ("train --data {pairs} --output {tmp}", "is not empty"),
        ("train --data {pairs} --output {tmp}/out --kind ratings", "did you mean 'rating'"),
        ("train --data {pairs} --output {tmp}/out --kind rating", "pairs.jsonl, line 1: no field 'completion'"),
        ("train --data {pairs} --output {tmp}/out --pessimism 1", "give --members too"),
        ("train --data {pairs} --output {tmp}/out --model gpt2 --width 32", "has its own width"),
        ("train --data {pairs} --output {tmp}/out --epoch 2", "did you mean '--epochs'"),
        ("train --data {tmp}/none.jsonl --output {tmp}/out", "none.jsonl"),
        ("score {tmp}/none --data {texts}", "no reward model's folder"),
        ("score", "required: FOLDER, --data"),
    ],
)
def test_bad_input_is_refused(pairs, answers, tmp_path, capsys, arguments, message):
    filled = arguments.format(tmp=tmp_path, pairs=pairs, texts=answers)
    assert main(["reward", *filled.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_score_is_not_written_over(pairs, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"prompt": "p", "completion": "c", "score": 1}\n')
    folder = tmp_path / "reward"
    assert main(["reward", "train", "--data", str(pairs), "--output", str(folder), "--quiet", *TINY]) == 0
    assert main(["reward", "score", str(folder), "--data", str(texts)]) == 2
    assert "line 1: there is a field 'score' already; name another one with --field" in capsys.readouterr().err
    output = tmp_path / "scored.jsonl"
    assert main(["reward", "score", str(folder), "--data", str(texts), "--output", str(output)]) == 2
    assert [path.name for path in tmp_path.glob("scored*")] == []  # nothing that could be taken for the result
    assert main(["reward", "score", str(folder), "--data", str(texts), "--output", str(output), "--field", "new"]) == 0
    assert json.loads(output.read_text())["score"] == 1
