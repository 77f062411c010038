"""Simulated annotators against the closed forms of what they are made of."""

import itertools
import math

import numpy as np
import pytest

from reward_models.feedback import (
    FeedbackError,
    FeedbackStore,
    Item,
    Prefer,
    Rank,
    Rate,
    SimulatedAnnotator,
    Task,
    Write,
    answer_all,
    gold_reward,
    measure_agreement,
)
from textgen_env import Prompt, dense
from textgen_env.reward import Reward, RewardError

DRAWS = 4000


def worth(prompt, completion):
    """A number written in the text."""
    return float(completion.split()[0])


def task(*texts, kind=None, scale=None):
    kind = kind or ("rating" if len(texts) == 1 else "comparison" if len(texts) == 2 else "ranking")
    return Task("id", kind, "p", texts, scale or ((1.0, 7.0) if kind == "rating" else None), 0)


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def share_of(annotator, asked, wanted, draws=DRAWS):
    return sum(annotator.answer(asked) == wanted for _ in range(draws)) / draws


def near(share, probability, draws=DRAWS):
    return abs(share - probability) < 4.5 * math.sqrt(probability * (1 - probability) / draws) + 1e-12


@pytest.mark.parametrize(
    ("options", "texts", "probability"),
    [
        ({"noise": 2.0}, ("3", "1"), sigmoid((3 - 1) / 2)),
        ({"noise": 0.5}, ("0.2", "0.5"), sigmoid(-0.3 / 0.5)),
        ({"length_bias": 0.1}, ("0 a a a a a", "1 a"), sigmoid(-1 + 0.1 * 4)),
        ({"position_bias": 0.7}, ("1", "1"), sigmoid(0.7)),
        ({"position_bias": 0.7, "noise": 0}, ("1", "1"), sigmoid(0.7)),
        ({"noise": 0}, ("1.001", "1"), 1.0),
        ({"noise": 0, "laziness": 0.3}, ("1", "0"), 0.7 + 0.15),
        ({"noise": 0, "laziness": 0.3, "lazy": "tie"}, ("1", "0"), 0.7),
        ({"laziness": 1.0, "position_bias": 5}, ("1", "0"), 0.5),
    ],
)
def test_preferences(options, texts, probability):
    share = share_of(SimulatedAnnotator(worth, seed=1, **options), task(*texts), Prefer(0))
    assert near(share, probability)


def test_the_wrong_temperature_is_seen():
    """Must fail: noise taken for its inverse."""
    assert not near(share_of(SimulatedAnnotator(worth, noise=2.0), task("3", "1"), Prefer(0)), sigmoid(2 * (3 - 1)))


def test_rankings_are_plackett_and_luces():
    """P(order) = Π_i e^{u_i} / Σ_{j not before i} e^{u_j}, with u the gold and what comes before in place."""
    annotator = SimulatedAnnotator(worth, position_bias=0.5, seed=2)
    asked = task("1", "0", "0.5")
    u = [1 - 0.0, 0 - 0.5, 0.5 - 1.0]
    drawn = [annotator.answer(asked).ranking for _ in range(DRAWS)]
    total = 0.0
    for order in itertools.permutations(range(3)):
        probability = math.prod(
            math.exp(u[i]) / sum(math.exp(u[j]) for j in order[place:]) for place, i in enumerate(order)
        )
        total += probability
        assert near(drawn.count(order) / DRAWS, probability)
    assert total == pytest.approx(1)


def test_ratings():
    """On a scale with room, the mean rating is the gold on it; at the ends, it is cut."""
    annotator = SimulatedAnnotator(worth, noise=0.5, gold_range=(0, 10), seed=3)
    ratings = [annotator.answer(task("4", scale=(0, 100))).rating for _ in range(DRAWS)]
    deviation = 0.5 * math.pi / math.sqrt(6) * 10
    assert abs(np.mean(ratings) - 40) < 4.5 * deviation / math.sqrt(DRAWS)
    assert np.std(ratings) == pytest.approx(deviation, rel=0.1)
    exact = SimulatedAnnotator(worth, noise=0, gold_range=(0, 1))
    assert [exact.answer(task(text)).rating for text in ("0", "0.5", "1", "9", "-9")] == [1, 4, 7, 7, 1]
    lazy = SimulatedAnnotator(worth, laziness=1, seed=4)
    drawn = [lazy.answer(task("9")).rating for _ in range(700)]
    assert all(near(drawn.count(rating) / 700, 1 / 7, 700) for rating in range(1, 8))
    with pytest.raises(FeedbackError, match="gold_range"):
        SimulatedAnnotator(worth).answer(task("1"))


def test_demonstrations():
    annotator = SimulatedAnnotator(worth, write=lambda prompt: f"after {prompt}")
    assert annotator.answer(task(kind="demonstration")) == Write("after p")
    with pytest.raises(FeedbackError, match="give the annotator write="):
        SimulatedAnnotator(worth).answer(task(kind="demonstration"))


def test_the_seed_makes_the_answers():
    def answers(seed):
        annotator = SimulatedAnnotator(worth, seed=seed)
        return [annotator.answer(task("0", "0", "0")) for _ in range(10)]

    assert answers(0) == answers(0) != answers(1)


def test_a_reward_can_be_the_gold():
    prompt = Prompt("p", ("the cat sat",))
    gold = gold_reward("rouge_l", [prompt])
    assert gold("p", "the cat sat") == 1
    assert gold("p", "a dog ran") == 0
    annotator = SimulatedAnnotator(gold, noise=0)
    assert annotator.answer(task("the dog", "the cat", "the cat sat")) == Rank((2, 1, 0))

    def brevity(completions):
        return [-len(text.split()) for text in completions]

    assert SimulatedAnnotator(Reward(brevity), noise=0).answer(task("a a", "a")) == Prefer(1)
    assert SimulatedAnnotator("distinct_2", noise=0).answer(task("a a a a")) == Rate(3.0)  # bounds 0 … 1: 1 + ⅓ · 6
    with pytest.raises(RewardError, match="is dense"):
        gold_reward(Reward(dense(brevity)))


@pytest.mark.parametrize(
    "options", [{"noise": -1}, {"laziness": 1.1}, {"lazy": "skip"}, {"gold_range": (1, 1)}, {"noise": math.nan}]
)
def test_impossible_habits_are_refused(options):
    with pytest.raises(FeedbackError):
        SimulatedAnnotator(worth, **options)


def test_the_whole_loop_finds_its_own_truth(store_path):
    """Gold 1 nat apart: each is right with p = σ(1), so two agree with p² + (1 - p)², and so with oneself later."""
    p = sigmoid(1)
    agree = p**2 + (1 - p) ** 2
    items, tests = 300, 150
    with FeedbackStore(store_path, create=True) as store:
        store.configure(overlap=2, gold_share=0.2, repeat_share=0.2)
        store.add_items(Item.of(f"p{n}", ["1 good", "0 bad"]) for n in range(items))
        store.add_items(Item.of(f"g{n}", ["1 good", "0 bad"], gold=Prefer(0)) for n in range(tests))
        people = {name: SimulatedAnnotator(worth, seed=seed) for seed, name in enumerate(("ada", "bob"))}
        assert answer_all(store, people, limit=5) == 5
        assert answer_all(store, people) > 900
        assert answer_all(store, people) == 0
        assert store.progress().complete == items
        found = measure_agreement(store.judgements(), resamples=100)
    figures = found.kinds["comparison"].figures
    assert near(figures["raw"].value, agree, items)
    # Which text is called the first is a coin's throw, so chance agreement is one half.
    assert figures["alpha"].value == pytest.approx(2 * figures["raw"].value - 1, abs=0.02)
    assert figures["cohen_kappa"].value == pytest.approx(figures["alpha"].value, abs=0.02)
    for tallies, probability in ((found.gold, p), (found.repeats, agree)):
        assert len(tallies) == 2
        assert all(near(tally.share.value, probability, tally.total) for tally in tallies.values())
        assert all(tally.total > 60 for tally in tallies.values())
    assert near(found.first_shown.share.value, 0.5, found.first_shown.total)
