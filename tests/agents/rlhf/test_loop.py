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
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents import PPO, PPOConfig
from agents.algorithms import find_algorithm
from agents.callbacks import CheckpointCallback
from agents.cli import main
from agents.model_source import load_model
from agents.rlhf.feedback import accuracy_from_agreement, best_accuracy, best_correlation
from agents.rlhf.folder import STAGES, LoopFolder, Stage, read_lines
from agents.rlhf.judgements import split_judgements
from agents.rlhf.loop import rlhf
from agents.rlhf.reward import correlation_of
from agents.rlhf.settings import RLHFSettings
from reward_models.feedback import FeedbackStore, SimulatedAnnotator, Task, answer_all
from reward_models.preference import Comparison, FitConfig, Rating
from tests.agents.conftest import gpt2_config, word_tokenizer

WORDS = "a b c d e f"
CONFIG = PPOConfig(
    episodes_per_rollout=64, num_envs=64, epochs=2, learning_rate=5e-3, learning_rate_schedule="constant"
)
FIT = FitConfig(epochs=8, batch_size=16, learning_rate=3e-3, evaluations=4)


def count_a(completions, **_):
    return [float(text.split().count("a")) for text in completions]


count_a.bounds = (0.0, 5.0)


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


# ---------------------------------------------------------------- ratings


def rated(path: Path, world: Path, sign: int = 1) -> Path:
    """Ratings of 100 prompts' texts, 4 texts each, as raters who like (or, with -1, dislike) a's would give them."""
    draw = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for line in list(read_lines(world / "prompts.jsonl"))[:100]:
            for _ in range(4):
                text = " ".join(draw.choices(WORDS.split(), k=5))
                rating = 4 + sign * (text.count("a") - 1)
                file.write(json.dumps({**line, "completion": text, "rating": rating}) + "\n")
    return path


@pytest.mark.parametrize("sign", [1, -1])
def test_ratings_that_exist_already_become_a_policy_by_one_command(world, tmp_path, capsys, sign):
    """Must fail to improve: raters who dislike a's lower their number."""
    given = rated(tmp_path / "rated.jsonl", world, sign)
    output = tmp_path / "loop"
    words = shlex.split(
        f"--model {world / 'model'} --prompts {given} --judgements {given} --feedback-kind rating --annotators none "
        f"--rounds 1 --output {output} --max-new-tokens 5 --comparisons 30 --held-out-share 0.3 --quiet --device cpu "
        "--split-fractions 0.6 0.1 0.3 --tokens-per-round 1500 --episodes-per-rollout 64 --num-envs 64 --epochs 2 "
        "--learning-rate 5e-3 --fit-epochs 8 --fit-batch-size 16 --fit-learning-rate 3e-3"
    )
    assert main(["rlhf", *words]) == 0
    assert "rank correlation with ratings" in capsys.readouterr().out
    (found,) = json.loads((output / "result.json").read_text())["rounds"]
    model, evaluation = found["reward_model"], found["evaluation"]
    assert model["correlation_interval"][0] > 0.5
    assert sum(model["ratings"].values()) == found["feedback"]["given"] == 400
    assert found["feedback"]["items"] == 0
    assert model["best_correlation"] is None
    assert evaluation["reward_gain"]["interval"][0] > 0
    counts = [
        np.mean(count_a([line["completion"] for line in read_lines(output / folder / "samples.jsonl")]))
        for folder in ("start", "round-1/5-evaluation")
    ]
    assert sign * (counts[1] - counts[0]) > 0.2
    # What the evaluation asks about, the reward model has not learned from.
    learned = {record["prompt"] for record in read_lines(output / "round-1/3-reward-model/train.jsonl")}
    asked = {line["prompt"] for line in read_lines(output / "start/samples.jsonl")}
    assert learned
    assert asked
    assert not learned & asked


def test_simulated_annotators_rate(world, tmp_path):
    chosen = settings(world, tmp_path / "loop", feedback_kind="rating", rounds=1)
    result = rlhf(chosen, CONFIG, FIT)
    model = result.rounds[0]["reward_model"]
    assert 0.3 < model["correlation"] < model["best_correlation"] < 1
    low, high = model["correlation_interval"]
    assert low < model["correlation"] < high
    assert result.rounds[0]["evaluation"]["gold_gain"]["mean"] > 0
    assert sum(model["ratings"].values()) == result.rounds[0]["feedback"]["items"]
    report = (result.folder / "report.md").read_text()
    assert "120 pairs, rated by simulated annotators" in report
    assert "| Reward model's rank correlation with ratings, held out |" in report


def test_people_rate_beside_the_ratings_that_exist(world, tmp_path):
    given = rated(tmp_path / "rated.jsonl", world)
    people = {"annotators": "people", "gold": None, "noise": 0.0, "feedback_kind": "rating", "judgements": given}
    chosen = settings(world, tmp_path / "loop", rounds=1, comparisons=10, tokens_per_round=200, **people)
    assert rlhf(chosen, CONFIG, FIT).status == "waiting"
    with FeedbackStore(tmp_path / "loop/round-1/2-feedback/feedback.db") as store:
        judge = SimulatedAnnotator(lambda _, text: text.count("a"), noise=0.5, gold_range=(0, 5))
        said = answer_all(store, {"ada": judge})
    (found,) = rlhf(chosen, CONFIG, FIT, resume=True).rounds
    assert found["feedback"]["judgements"] == said > 10
    assert sum(found["reward_model"]["ratings"].values()) == said + 400


def test_the_correlation_is_scipy_s_and_its_interval_goes_by_prompts():
    draw = np.random.default_rng(0)
    ratings = [Rating(f"prompt {n % 8}", f"{n}", float(draw.integers(5))) for n in range(80)]
    scores = {one.completion: one.rating + draw.normal() for one in ratings}
    rho, (low, high) = correlation_of(lambda texts, prompts: [scores[text] for text in texts], ratings)
    expected = stats.spearmanr([scores[one.completion] for one in ratings], [one.rating for one in ratings])
    assert rho == pytest.approx(expected.statistic)
    assert low < rho < high
    # Whole prompts are drawn, so of one prompt there is nothing else to draw.
    alone = [dataclasses.replace(one, prompt="same") for one in ratings]
    rho, interval = correlation_of(lambda texts, prompts: [scores[text] for text in texts], alone)
    assert interval == pytest.approx((rho, rho))
    assert correlation_of(lambda texts, prompts: [1.0] * len(texts), ratings) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize("laziness", [0.0, 0.5, 1.0])
def test_no_judge_correlates_better_than_one_who_knows_gold(world, tmp_path, laziness):
    """Against the answers of an annotator asked once, over many texts; who answers blindly cannot be foreseen."""
    chosen = settings(world, tmp_path, feedback_kind="rating", noise=1.0, laziness=laziness)
    ratings = [Rating("", " ".join(text), 0.0) for text in itertools.product("abc", repeat=6)]
    best = best_correlation(chosen, lambda _, text: float(text.count("a")), ratings)
    judge = SimulatedAnnotator(
        lambda _, text: float(text.count("a")), noise=1.0, laziness=laziness, gold_range=(0, 5), seed=9
    )
    said = [judge.answer(Task("", "rating", "", one.completions, (1.0, 7.0), 0)).rating for one in ratings]
    known = [one.completion.count("a") for one in ratings]
    assert best == pytest.approx(stats.spearmanr(known, said).statistic, abs=4 / math.sqrt(len(ratings)))
    assert best < {0.0: 0.8, 0.5: 0.5, 1.0: 0.1}[laziness]


def test_the_policy_s_held_out_prompts_teach_no_reward():
    records = [{"prompt": f"p{n}", "completion": str(m), "rating": float(m)} for n in range(50) for m in range(2)]
    held_out = {f"p{n}": "test" if n % 2 else "validation" for n in range(20)}
    parts = split_judgements(records, 0.2, held_out)
    assert sum(map(len, parts.values())) == 100
    for name in ("validation", "test"):
        assert {record["prompt"] for record in parts[name]} >= {p for p, side in held_out.items() if side == name}
    alike = [{**record, "rating": 3.0} for record in records]
    with pytest.raises(ValueError, match="falls into the train part"):
        split_judgements(alike, 0.2, held_out)


@pytest.mark.parametrize(
    ("line", "changes", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, {}, "holds comparisons: give --feedback-kind comparison"),
        ({"ranking": ["a", "b"]}, {}, "holds rankings"),
        ({"completion": "a", "rating": 0.5}, {"annotators": "people"}, "rating of 0.5, but people rate from 1 to 7"),
        ({"completion": "a", "rating": 3}, {}, "of 1 judgements on 1 prompts, none"),
        ({"completion": "a", "rating": "good"}, {}, "line 1, field 'rating': expected a finite number"),
    ],
)
def test_judgements_that_do_not_fit_are_refused_at_once(world, tmp_path, line, changes, message):
    path = tmp_path / "given.jsonl"
    path.write_text(json.dumps({"prompt": "p", **line}) + "\n")
    options = {"annotators": "none", "rounds": 1, "feedback_kind": "rating", "gold": None, "noise": 0.0, **changes}
    chosen = settings(world, tmp_path / "loop", judgements=path, **options)
    with pytest.raises(ValueError, match=message):
        rlhf(chosen, CONFIG, FIT)
    assert not (tmp_path / "loop").exists()


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
        ({"feedback_kind": "rate"}, "did you mean 'rating'"),
        ({"judgements": "x.jsonl"}, "simulated annotators agree on no judgements"),
        ({"annotators": "none", "gold": None, "noise": 0.0}, "where judgements are"),
        ({"annotators": "none", "gold": None, "noise": 0.0, "judgements": "x.jsonl"}, "rounds must be 1, got 2"),
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
        ({"feedback_kind": "rating", "gold": ten_times}, {}, "no finite bounds"),
    ],
)
def test_what_cannot_work_is_said_at_once(world, tmp_path, changes, options, message):
    chosen = settings(world, tmp_path / "loop", **changes)
    kind = find_algorithm(chosen.algo)[1]
    with pytest.raises(ValueError, match=message):
        rlhf(chosen, kind(**options), FIT)
    assert not (tmp_path / "loop").exists()
