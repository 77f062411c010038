"""Every example of the pages in docs/ runs, offline, and stays short; their links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from agents import cli
from reward_models.feedback import FeedbackStore, SimulatedAnnotator, answer_all
from tests import snippets
from tests.reward_models import tiny_models as tiny

PAGES = sorted(f"docs/{path.name}" for path in (snippets.ROOT / "docs").glob("*.md"))
EXAMPLES = [(page, number) for page in PAGES for number in range(len(snippets.blocks(page, "python")))]
REWARD_COMMANDS = [line for line in snippets.commands("docs/rewards.md") if line.startswith("textgen ")]
LOOP_COMMANDS = [line for line in snippets.commands("docs/rlhf.md") if line.startswith("textgen ")]
PRETRAIN_COMMANDS = [line for line in snippets.commands("docs/pretraining.md") if line.startswith("textgen ")]
FROM_SCRATCH = ["--quiet", "--width", "32", "--heads", "2"]
SHORT_RUN = shlex.split(
    "--warm-start-epochs 0.01 --total-tokens 200 --episodes-per-rollout 8 --eval-prompts 4 --output run"
)
SMALL = {
    "pretrain": [*FROM_SCRATCH, *shlex.split("--layers 1 --epochs 1 --vocab-size 280 --block-size 64 --device cpu")],
    "generate": shlex.split("--max-new-tokens 4"),
    "reward": [*FROM_SCRATCH, "--epochs", "1", "--vocab-size", "300"],
    "rlhf": shlex.split(
        "--quiet --rounds 1 --comparisons 60 --held-out-share 0.4 --max-new-tokens 6 --tokens-per-round 200 "
        "--eval-prompts 4 --fit-epochs 1 --num-envs 16 --episodes-per-rollout 32"
    ),
    "train": [*FROM_SCRATCH, "--layers", "1", *SHORT_RUN],
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models and files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    labels = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    tiny.bert_classifier(**labels).save_pretrained("my-classifier")
    tiny.bert().save_pretrained("my-encoder")
    tiny.gpt2().save_pretrained("my-lm")
    for folder in ("my-classifier", "my-encoder"):
        tiny.encoder_tokenizer().save_pretrained(folder)
    tiny.lm_tokenizer().save_pretrained("my-lm")
    return tmp_path


@pytest.mark.parametrize(("page", "number"), EXAMPLES)
def test_python_example_runs(page: str, number: int, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippets.run(page, number)


@pytest.mark.parametrize(("page", "number"), EXAMPLES)
def test_examples_are_short_enough_to_read(page: str, number: int) -> None:
    assert len(snippets.blocks(page, "python")[number].splitlines()) <= 15


def test_the_reward_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order: each uses what the one before has left."""
    pairs = [{"prompt": f"Town {i}:", "chosen": f"rain in town {i}", "rejected": "rain rain"} for i in range(24)]
    texts = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    for name, records in (("pairs", pairs), ("texts", texts)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (workplace / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    code = "from reward_models.preference import load\n\nlearned = load('my-reward')\n"
    (workplace / "my_rewards.py").write_text(code, encoding="utf-8")
    threads = torch.get_num_threads()
    try:
        for line in REWARD_COMMANDS:
            words = shlex.split(line)[1:]
            small = [] if "score" in words else SMALL[words[0]]
            assert cli.main([*words, *small]) == 0, line
    finally:
        torch.set_num_threads(threads)
    scored = (workplace / "scored.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(scored) == len(texts)
    assert all("score" in json.loads(line) for line in scored)


def test_the_loop_s_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order, people answering where the page says that they do."""
    openings = "".join(json.dumps({"prompt": f"Day {number}:"}) + "\n" for number in range(90))
    (workplace / "openings.jsonl").write_text(openings, encoding="utf-8")
    ratings = [
        {"prompt": f"Day {n}:", "completion": "rain " * m, "rating": m + n % 2} for n in range(90) for m in (1, 4)
    ]
    (workplace / "rated.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ratings), encoding="utf-8")
    codes = []
    for line in LOOP_COMMANDS:
        words = shlex.split(line)[1:]
        if words[0] == "feedback":
            with FeedbackStore(words[-1]) as store:
                answer_all(store, {name: SimulatedAnnotator("sentiment_lexicon") for name in ("ada", "bo")})
        else:
            codes.append(cli.main([*words, *(["--quiet"] if "--resume" in words else SMALL["rlhf"])]))
    assert codes == [0, 0, 3, 0, 0]
    assert (workplace / "from-ratings" / "round-1" / "4-policy" / "model").is_dir()
    assert (workplace / "my-loop" / "round-2" / "5-evaluation" / "stage.json").is_file()


def test_the_pretraining_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"It was a {mood} day. We saw {number} birds." for mood in ("good", "bad") for number in range(20)]
    (workplace / "stories.txt").write_text("\n\n".join(texts), encoding="utf-8")
    prompts = [{"prompt": f"We saw {number}", "reference": "birds."} for number in range(40)]
    lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    (workplace / "prompts.jsonl").write_text(lines, encoding="utf-8")
    threads = torch.get_num_threads()
    try:
        for line in PRETRAIN_COMMANDS:
            words = shlex.split(line)[1:]
            small = ["--quiet", *SHORT_RUN] if "--model" in words else SMALL[words[0]]
            assert cli.main([*words, *small]) == 0, line
    finally:
        torch.set_num_threads(threads)


def test_examples_were_found() -> None:
    assert sum(page == "docs/rewards.md" for page, _ in EXAMPLES) >= 10
    assert len(REWARD_COMMANDS) == 3
    assert len(PRETRAIN_COMMANDS) == 5
    assert len(LOOP_COMMANDS) == 6


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_links_lead_to_files(page: str) -> None:
    text = (snippets.ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert ((snippets.ROOT / page).parent / link).exists(), link


def test_every_ready_reward_is_in_the_catalogue() -> None:
    import reward_models

    text = (snippets.ROOT / "docs/rewards.md").read_text(encoding="utf-8")
    inside = {"Composable", "DiscriminatorConfig", "PotentialDifference", "Product", "Ratio", "WeightedSum"}
    assert not [name for name in reward_models.__all__ if name not in inside and name not in text]
