"""Gold by hand, what the proxies learn from, a line that repeats its run, and the figures by hand."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from agents import PPOConfig
from benchmarks import overoptimisation
from benchmarks.hotel_reviews import MAX_NEW_TOKENS, VALENCES, WORDS, follows, gold, review_task, write
from benchmarks.overoptimisation import ARMS, Settings, compare, draw, outcome, report, reward_at, run, run_all
from reward_models.preference import FitConfig
from textgen_env import TextMDP

PROMPT = "room was clean and"

TINY = Settings(
    references_per_prompt=2,
    warm_start_epochs=0.5,
    comparisons=16,
    reward_model=FitConfig(epochs=1.0, evaluations=1),
    members=2,
    width=16,
    ppo=PPOConfig(episodes_per_rollout=16, num_envs=16, epochs=1, learning_rate=1e-2, kl_coef_per_sequence=1e-3),
    updates=2,
    updates_per_look=1,
)


# --- the world --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("food was superb", 2.0),
        ("food was very superb and bar was dull", 2.0 - 1.0),
        ("food was superb and bar was superb", 2.0 - 0.5),
        ("food was clean", -0.5),  # the prompt said so already
        ("", -1.0),  # "and" ends no text
        ("food", -1.0),
        ("food superb", 2.0 - 1.0),
        ("superb superb superb", 2.0 - 2 * 0.5 - 3.0),
        ("food was very very superb and", 2.0 - 2.0),
    ],
)
def test_gold_by_hand(completion, expected):
    assert gold([completion], [PROMPT]) == [expected]


def test_the_source_writes_every_pair_that_is_no_breach_and_no_other():
    generator = np.random.default_rng(0)
    texts = [write(generator) for _ in range(3000)]
    seen = {pair for text in texts for pair in itertools.pairwise(["and", *text.split(), None])}
    assert seen == {(word, after) for word in WORDS for after in (*WORDS, None) if follows(word, after)}
    assert {text.split().count("and") for text in texts} == {0, 1}
    assert max(len(text.split()) for text in texts) < MAX_NEW_TOKENS  # an EOS has room


def test_every_first_clause_is_a_prompt_of_one_split():
    splits = review_task(1, seed=0).splits
    texts = [prompt.text for prompts in splits.values() for prompt in prompts]
    assert len(set(texts)) == len(texts) == 6 * 2 * len(VALENCES)
    assert all(len(splits[name]) > 10 for name in ("train", "validation", "test"))


# --- the comparisons --------------------------------------------------------------------------------------


class Writer:
    """Stands for the start policy: writes the source's texts and remembers them."""

    def __init__(self):
        self.written = []

    def generate(self, prompts, seed):
        generator = np.random.default_rng(seed)
        texts = [write(generator) for _ in prompts]
        self.written += zip(prompts, texts, strict=True)
        return texts


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_comparisons_are_the_policys_own_texts_labelled_by_gold(noise):
    writer, mdp = Writer(), TextMDP(review_task(1, seed=0))
    made = compare(writer, mdp, 200, noise, np.random.default_rng(0))
    assert len(made) == 200
    for item in made:
        chosen, rejected = gold([item.chosen, item.rejected], [item.prompt] * 2)
        assert chosen > rejected if noise == 0 else chosen < rejected
        assert {(item.prompt, item.chosen), (item.prompt, item.rejected)} <= set(writer.written)


def test_a_quarter_of_the_labels_is_flipped():
    mdp = TextMDP(review_task(1, seed=0))
    made = compare(Writer(), mdp, 2000, 0.25, np.random.default_rng(0))
    flipped = np.mean([np.subtract(*gold([item.chosen, item.rejected], [item.prompt] * 2)) < 0 for item in made])
    assert abs(flipped - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)


# --- a run ------------------------------------------------------------------------------------------------


def test_a_line_holds_what_repeats_the_run(monkeypatch):
    given = []
    fit_ensemble = overoptimisation.fit_ensemble

    def spy(make_member, size, train, validation, config, **options):
        given.append((size, train, validation))
        return fit_ensemble(make_member, size, train, validation, config, **options)

    monkeypatch.setattr(overoptimisation, "fit_ensemble", spy)
    line = json.loads(json.dumps(run("pessimistic", 3, TINY)))
    parts = {"reward_model": FitConfig(**line["settings"]["reward_model"]), "ppo": PPOConfig(**line["settings"]["ppo"])}
    settings = Settings(**{**line["settings"], **parts})
    assert settings == TINY
    again = run(line["arm"], line["seed"], settings)
    assert again["curve"] == line["curve"]
    assert again["texts"] == line["texts"]
    assert len(line["curve"]) == 3
    assert line["curve"][0]["tokens"] == 0 < line["curve"][-1]["tokens"]
    assert abs(line["curve"][0]["kl"]) < 1e-5 < abs(line["curve"][-1]["kl"])
    assert len(line["proxy_accuracy"]) == 2
    assert {"commit", "torch", "torch_threads"} <= set(line["circumstances"])

    (size, train, validation), _ = given
    task = review_task(TINY.references_per_prompt, seed=3)
    assert size == 2
    assert len(train) == 16
    assert {item.prompt for item in train} <= {prompt.text for prompt in task.prompts("train")}
    assert {item.prompt for item in validation} <= {prompt.text for prompt in task.prompts("validation")}


def test_the_control_is_trained_on_what_it_is_measured_by():
    line = run("gold", 0, TINY)
    assert line["proxy_accuracy"] == []
    for point in line["curve"]:
        assert point["proxy"] == pytest.approx(point["gold"])


def test_an_unknown_arm_is_named():
    with pytest.raises(ValueError, match="unknown arm 'pesimistic'; did you mean 'pessimistic'"):
        run("pesimistic", 0, TINY)


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(overoptimisation, "run", lambda arm, seed, settings: line_of(arm, seed, settings=settings))
    output = tmp_path / "out" / "lines.jsonl"
    assert [(line["arm"], line["seed"]) for line in run_all(1, output, TINY)] == [(arm, 0) for arm in ARMS]
    assert [(line["arm"], line["seed"]) for line in run_all(2, output, TINY)] == [(arm, 1) for arm in ARMS]
    with pytest.raises(ValueError, match="runs of other settings"):
        list(run_all(3, output, dataclasses.replace(TINY, members=3)))


# --- the figures ------------------------------------------------------------------------------------------


def curve_of(*points):
    return [{"tokens": 0, "kl": kl, "proxy": proxy, "gold": true} for kl, proxy, true in points]


def line_of(arm, seed, *points, settings=TINY):
    curve = curve_of(*(points or [(0.0, 0.0, 0.0), (9.0, 1.0, 1.0), (49.0, 3.0, -3.0)]))
    return {
        "arm": arm,
        "seed": seed,
        "settings": dataclasses.asdict(settings),
        "curve": curve,
        "cpu_seconds": 1.0,
    }


def test_the_outcome_by_hand():
    assert outcome(curve_of((0.0, 0.0, 0.0), (9.0, 1.0, 1.0), (49.0, 3.0, -3.0))) == {
        "peak gold": 1.0,
        "KL at the peak": 9.0,
        "gold at the end": -3.0,
        "KL at the end": 49.0,
        "proxy − gold at the end": 6.0,
        "gold at 25 nats": pytest.approx(-1.0),  # √KL 5 lies half-way from 3 to 7
    }


def test_a_reward_at_a_kl_is_where_it_is_first_reached():
    curve = curve_of((0.0, 0, 0.0), (16.0, 0, 4.0), (9.0, 0, 9.0), (36.0, 0, 10.0))
    np.testing.assert_allclose(reward_at(curve, "gold", np.array([2.0, 3.0, 4.0, 5.0, 6.0])), [2, 3, 4, 7, 10])
    assert np.isnan(reward_at(curve, "gold", np.array([6.1]))).all()
    below = curve_of((-1e-9, 0, 1.0), (4.0, 0, 3.0))  # a sampled KL may be
    assert reward_at(below, "gold", np.array([1.0])) == 2.0


def test_the_tables_pair_the_seeds():
    """Ends −3 and −1 against 1 and 4: the gain is 4.5 ± t·s/√2, with t = 12.706 and s = 1/√2."""
    ends = {"single": (-3.0, -1.0), "pessimistic": (1.0, 4.0)}
    lines = [
        line_of(arm, seed, (0.0, 0.0, 0.0), (100.0 if arm == "single" else 16.0, 5.0, end))
        for arm, both in ends.items()
        for seed, end in enumerate(both)
    ]
    table = report(reversed(lines))
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]]
        for row in table.split("\n")[2:]
        if row
    }
    names = [cell.strip() for cell in table.split("\n")[0].split("|")[2:-1]]
    cell = {name: dict(zip(names, cells, strict=True)) for name, cells in rows.items() if len(cells) == len(names)}
    assert cell["single"]["gold at the end"] == "-2.00 ± 12.71"
    assert cell["pessimistic − single"]["gold at the end"] == f"4.50 ± {12.706 / 2:.2f}"
    assert cell["single"]["gold at 25 nats"] == "-1.00 ± 6.35"
    assert cell["pessimistic"]["gold at 25 nats"] == "not reached"
    some = report([*lines, line_of("pessimistic", 2)])
    assert "-1.00 (1 of 3)" in some


@pytest.mark.parametrize(("arms", "seeds"), [(ARMS, 2), (("single",), 1), (("gold",), 1)])
def test_the_plot_is_a_picture(tmp_path, arms, seeds):
    draw([line_of(arm, seed) for arm in arms for seed in range(seeds)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_plotting_makes_no_run(tmp_path, capsys):
    output = tmp_path / "lines.jsonl"
    with pytest.raises(SystemExit):
        overoptimisation.main(["plot", "--output", str(output)])
    assert "holds no runs" in capsys.readouterr().err
    output.write_text("".join(json.dumps(line_of(arm, 0)) + "\n" for arm in ("single", "mean")))
    assert overoptimisation.main(["plot", "--output", str(output)]) == 0
    assert "| mean − single |" in capsys.readouterr().out
    assert output.with_suffix(".png").exists()
