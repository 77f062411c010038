"""The loop of reinforcement learning from human feedback, on a world of six words where more a's are better."""

import dataclasses
import itertools
import json
import math
import random
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import PPO, PPOConfig
from agents.algorithms import find_algorithm
from agents.callbacks import CheckpointCallback
from agents.cli import main
from agents.model_source import load_model
from agents.rlhf import rlhf
from agents.rlhf_feedback import accuracy_from_agreement, best_accuracy
from agents.rlhf_folder import STAGES, LoopFolder, Stage, read_lines
from agents.rlhf_settings import RLHFSettings
from reward_models.feedback import FeedbackStore, SimulatedAnnotator, Task, answer_all
from reward_models.preference import Comparison, FitConfig
from tests.agents.conftest import gpt2_config, word_tokenizer

WORDS = "a b c d e f"
CONFIG = PPOConfig(
    episodes_per_rollout=64, num_envs=64, epochs=2, learning_rate=5e-3, learning_rate_schedule="constant"
)
FIT = FitConfig(epochs=8, batch_size=16, learning_rate=3e-3, evaluations=4)


def count_a(completions, **_):
    return [float(text.split().count("a")) for text in completions]


def ten_times(completions, **_):
    return [10 * count for count in count_a(completions)]


def fewer_a(completions, **_):
    return [-count for count in count_a(completions)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model that writes six words by chance, and prompts."""
    folder = tmp_path_factory.mktemp("world")
    load_model(gpt2_config(spread=0.05, layers=1), 0).save_pretrained(folder / "model")
    word_tokenizer(WORDS).save_pretrained(folder / "model")
    lines = [" ".join(words) for words in itertools.product(WORDS.split(), repeat=3)]
    random.Random(0).shuffle(lines)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines[:120]))
    return folder


def settings(world: Path, output: Path, /, **changes) -> RLHFSettings:
    defaults = {
        "prompts": world / "prompts.jsonl",
        "model": world / "model",
        "gold": count_a,
        "noise": 0.3,
        "max_new_tokens": 5,
        "comparisons": 120,
        "held_out_share": 0.3,
        "tokens_per_round": 1000,
        "checkpoint_every": 300,
        "eval_prompts": 12,
        "device": "cpu",
        "output": output,
    }
    return RLHFSettings(**{**defaults, **changes})


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """Two rounds from start to end, and the stages in which the gold was asked."""
    asked_in: set[str] = set()
    now = [""]

    def watched(completions, **_):
        asked_in.add(now[0])
        return count_a(completions)

    def note(title, detail):
        if title:
            now[0] = detail

    result = rlhf(settings(world, tmp_path_factory.mktemp("loops") / "loop", gold=watched), CONFIG, FIT, on_stage=note)
    return result, asked_in


def outcome(folder: Path) -> list[bytes]:
    """All that must be the same to the last bit, but for who answered when."""
    files = sorted(
        path for path in folder.rglob("*") if path.name in ("samples.jsonl", "items.jsonl", "model.safetensors")
    )
    assert len(files) > 10
    return [str(path.relative_to(folder)).encode() + path.read_bytes() for path in files]


def test_two_rounds_raise_the_gold(finished):
    result, _ = finished
    assert result.status == "finished"
    gold = [result.start["gold"], *(one["evaluation"]["gold"] for one in result.rounds)]
    assert gold[0]["interval"][1] < gold[2]["interval"][0]
    for one in result.rounds:
        evaluation = one["evaluation"]
        assert evaluation["split"] == "test"
        assert evaluation["reward_gain"]["mean"] > 0
        assert evaluation["kl"] > 3 * evaluation["kl_standard_error"] > 0
        assert one["reward_model"]["accuracy"] > 0.6
        assert 0.6 < one["reward_model"]["best_accuracy"] < 1
    assert result.start["kl"] == pytest.approx(0, abs=1e-6)
    counts = [sum(one["reward_model"]["comparisons"].values()) for one in result.rounds]
    assert counts == [
        result.rounds[0]["feedback"]["judgements"],
        sum(one["feedback"]["judgements"] for one in result.rounds),
    ]


def test_the_folder_is_complete(finished):
    result, _ = finished
    folder = LoopFolder(result.folder)
    assert result.model == folder.stage(2, "4-policy").path / "model"
    model = AutoModelForCausalLM.from_pretrained(result.model)
    agent = PPO.load(result.model.parent / "agent.zip", device="cpu")
    ids = torch.tensor([AutoTokenizer.from_pretrained(result.model).encode("a b")])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, agent.policy.model(ids).logits)
    written = json.loads(folder.result.read_text())
    assert written["status"] == "finished"
    assert written["rounds"][1]["evaluation"]["gold"]["mean"] == result.rounds[1]["evaluation"]["gold"]["mean"]
    assert set(written["seconds"]) == {"start", *(f"round-{r}/{name}" for r in (1, 2) for name in STAGES)}
    page = (result.folder / "report.html").read_text()
    assert "which the learner never saw" in page
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r"<[^>]*https?:", page)
    assert not list(result.folder.rglob("*.tmp"))


def test_the_reference_of_all_rounds_is_the_start(finished, world):
    result, _ = finished
    agent = PPO.load(LoopFolder(result.folder).stage(2, "4-policy").path / "agent.zip", device="cpu")
    start = load_model(str(world / "model")).state_dict()
    kept = agent.reference.model.state_dict()
    assert all(torch.equal(kept[name], start[name]) for name in start)
    assert not all(torch.equal(weight, start[name]) for name, weight in agent.policy.model.state_dict().items())


def test_gold_is_asked_by_annotators_and_in_the_end_only(finished):
    _, asked_in = finished
    assert asked_in == {"the model as it is", "feedback", "evaluation"}


def test_all_that_the_learner_learns_of_gold_is_which_text_is_better(world, tmp_path):
    """Another gold with the same preferences leads to the same weights, bit by bit; one with others does not."""
    one, same, opposite = (
        rlhf(settings(world, tmp_path / gold.__name__, gold=gold, noise=0.0, rounds=1), CONFIG, FIT)
        for gold in (count_a, ten_times, fewer_a)
    )
    policies = [(result.model / "model.safetensors").read_bytes() for result in (one, same, opposite)]
    assert policies[0] == policies[1]
    assert policies[0] != policies[2]
    # Must fail to improve: annotators who prefer the worse lower what they are wrong about.
    before = np.mean(count_a([line["completion"] for line in read_lines(one.folder / "start/samples.jsonl")]))
    for result, sign in ((one, 1), (opposite, -1)):
        lines = read_lines(result.folder / "round-1/5-evaluation/samples.jsonl")
        after = np.mean(count_a([line["completion"] for line in lines]))
        assert sign * (after - before) > 0.3


class Killed(BaseException):
    """What no handler catches."""


def test_killed_in_every_stage_it_ends_where_an_uninterrupted_one_does(finished, world, tmp_path, monkeypatch):
    whole, _ = finished
    killed: list[str] = []
    finish, train = Stage.finish, PPO.train
    updates = [0]

    def kill_once(self, found):
        name = f"{self.path.parent.name}/{self.path.name}"
        if name not in killed:
            killed.append(name)
            raise Killed
        finish(self, found)

    def kill_in_the_middle(self, trajectories):
        updates[0] += 1
        if updates[0] in (3, 5):
            raise Killed
        train(self, trajectories)

    monkeypatch.setattr(Stage, "finish", kill_once)
    monkeypatch.setattr(PPO, "train", kill_in_the_middle)
    monkeypatch.setattr(CheckpointCallback, "save_interrupted", lambda self: None)  # nobody asks when killed
    chosen = settings(world, tmp_path / "loop")
    attempts = 0
    while True:
        attempts += 1
        try:
            result = rlhf(chosen, CONFIG, FIT, resume=attempts > 1)
            break
        except Killed:
            pass
    assert len(killed) == 11
    assert attempts == 1 + 11 + 2
    assert outcome(result.folder) == outcome(whole.folder)
    assert [result.start, result.rounds] == [whole.start, whole.rounds]


def test_ctrl_c_keeps_what_there_is_and_another_round_can_follow(world, tmp_path, monkeypatch):
    def interrupted(self, trajectories):
        raise KeyboardInterrupt

    chosen = settings(world, tmp_path / "loop", rounds=1, tokens_per_round=300, gold="distinct_2")
    with monkeypatch.context() as patched:
        patched.setattr(PPO, "train", interrupted)
        cut = rlhf(chosen, CONFIG, FIT)
    assert cut.status == "interrupted"
    assert cut.instructions == f"textgen rlhf --resume {tmp_path / 'loop'}"
    assert cut.start
    assert not cut.rounds
    assert "textgen rlhf --resume" in (tmp_path / "loop/report.md").read_text()
    assert rlhf(chosen, CONFIG, FIT, resume=True).status == "finished"
    with pytest.raises(FileExistsError, match="--resume"):
        rlhf(chosen, CONFIG, FIT)
    with pytest.raises(ValueError, match="begun with noise"):
        rlhf(dataclasses.replace(chosen, noise=0.4), CONFIG, FIT, resume=True)
    with pytest.raises(ValueError, match="begun with epochs=2, not 3"):
        rlhf(chosen, dataclasses.replace(CONFIG, epochs=3), FIT, resume=True)


def test_people_are_waited_for(world, tmp_path, capsys):
    """By the command line: it stops, says what to do, and goes on with what was said."""
    output = tmp_path / "loop"
    guidelines = tmp_path / "guidelines.txt"
    guidelines.write_text("Prefer a's.")
    options = shlex.split(
        "--annotators people --max-new-tokens 5 --comparisons 60 --held-out-share 0.4 --rounds 1 --quiet "
        "--tokens-per-round 200 --eval-prompts 4 --device cpu --episodes-per-rollout 32 --overlap 2 "
        "--fit-epochs 2 --fit-learning-rate 1e-3 --learning-rate 1e-3"
    )
    begun = ["--model", str(world / "model"), "--prompts", str(world / "prompts.jsonl"), "--output", str(output)]
    assert main(["rlhf", *begun, "--guidelines", str(guidelines), *options]) == 3
    said = capsys.readouterr().out
    store = output / "round-1/2-feedback/feedback.db"
    assert f"textgen feedback serve {store}" in said
    assert f"textgen rlhf --resume {output}" in said
    assert main(["rlhf", "--resume", str(output), "--quiet"]) == 3
    with FeedbackStore(store) as opened:
        assert opened.guidelines().text == "Prefer a's."
        people = {
            name: SimulatedAnnotator(lambda _, text: text.count("a"), noise=0.5, seed=3) for name in ("ada", "bo")
        }
        assert answer_all(opened, people, limit=100) == 100
    assert main(["rlhf", "--resume", str(output), "--quiet"]) == 3
    assert "100 of" in capsys.readouterr().out
    assert main(["rlhf", "--resume", str(output), "--quiet", "--enough"]) == 0
    assert "The most it could be" in capsys.readouterr().out
    result = json.loads((output / "result.json").read_text())
    assert result["rounds"][0]["feedback"]["judgements"] == 100
    assert "gold" not in result["rounds"][0]["evaluation"]
    assert 0.5 <= result["rounds"][0]["reward_model"]["best_accuracy"] <= 1
    config = json.loads((output / "config.json").read_text())
    assert (config["fit"]["epochs"], config["algorithm"]["learning_rate"]) == (2, 1e-3)

    assert main(["rlhf", "--resume", str(output), "--noise", "1"]) == 2
    assert "--noise cannot be given; --rounds" in capsys.readouterr().err
    assert main(["rlhf", "--resume", str(world)]) == 2
    assert "no folder of 'textgen rlhf'" in capsys.readouterr().err


# ---------------------------------------------------------------- small parts


@pytest.mark.parametrize(("noise", "length_bias", "position_bias", "laziness"), [(0.7, 0, 0, 0), (1, 0.5, 1.5, 0.2)])
def test_the_best_accuracy_is_the_best_guess_of_what_annotators_say(
    world, tmp_path, noise, length_bias, position_bias, laziness
):
    habits = {"noise": noise, "length_bias": length_bias, "position_bias": position_bias, "laziness": laziness}
    chosen = settings(world, tmp_path, **habits)
    texts = ("a b c", "a a")

    def gold(_, text):
        return float(text.count("a"))

    annotator, orders = SimulatedAnnotator(gold, **habits), random.Random(1)
    hits = 0
    for number in range(3000):
        order = orders.sample((0, 1), 2)
        task = Task(str(number), "comparison", "prompt", tuple(texts[index] for index in order), None, 0)
        hits += order[annotator.answer(task).preferred] == 0
    first = hits / 3000
    expected = best_accuracy(chosen, gold, [Comparison("prompt", *texts)])
    assert expected == pytest.approx(max(first, 1 - first), abs=4 * math.sqrt(0.25 / 3000))


def test_the_best_accuracy_without_noise(world, tmp_path):
    chosen = settings(world, tmp_path, noise=0.0)
    pairs = [Comparison("", "a", "b"), Comparison("", "a", "a c")]  # the second are equally good: a coin
    assert best_accuracy(chosen, lambda _, text: float(text.count("a")), pairs) == pytest.approx(0.75)


@pytest.mark.parametrize("accuracy", [0.5, 0.7, 1.0])
def test_agreement_bounds_the_accuracy(accuracy):
    assert accuracy_from_agreement(accuracy**2 + (1 - accuracy) ** 2) == pytest.approx(accuracy)
    mixed = [0.5, 1.0]  # half the pairs are coins: the bound is not tight, but holds
    assert accuracy_from_agreement(np.mean([p**2 + (1 - p) ** 2 for p in mixed])) > np.mean(mixed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": None}, "either env"),
        ({"model": None}, "say which model"),
        ({"gold": None}, "--gold"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"held_out_share": 1.0}, "held_out_share"),
        ({"annotators": "people"}, "gold is about simulated"),
        ({"annotators": "nobody"}, "annotators must be one of"),
        ({"guidelines": "x.txt"}, "guidelines are for people"),
    ],
)
def test_settings_that_do_not_fit_together(world, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(world, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"algo": "dqn"}, {}, "reinforce, a2c, ppo, grpo, nlpo do"),
        ({}, {"kl_coef_per_sequence": 0.0}, "give a small one"),
        ({"gold": "rouge_k"}, {}, "did you mean 'rouge_"),
        ({"gold": "json:dump_s"}, {}, "no 'dump_s'"),
        ({"split_fractions": (1.0, 0.0, 0.0)}, {}, "none held out"),
    ],
)
def test_what_cannot_work_is_said_at_once(world, tmp_path, changes, options, message):
    chosen = settings(world, tmp_path / "loop", **changes)
    kind = find_algorithm(chosen.algo)[1]
    with pytest.raises(ValueError, match=message):
        rlhf(chosen, kind(**options), FIT)
    assert not (tmp_path / "loop").exists()
