"""Fits learn what people said, on prompts they never saw, and only that; the same seed gives the same weights."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from reward_models.preference import (
    Comparison,
    FitConfig,
    Ranking,
    Rating,
    RewardEnsemble,
    RewardModel,
    assess,
    fit,
    fit_ensemble,
    load,
    split_preferences,
)
from reward_models.preference.fit import _factor

WORDS = ["red", "blue", "green", "cat", "dog", "sun", "moon", "good", "bad", "fast"]
QUICK = FitConfig(epochs=3, batch_size=16, learning_rate=1e-2, evaluations=4)


def goodness(text):
    return text.split().count("good")


def texts(count, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=5)) for _ in range(count)]


def comparisons(count=160, seed=0, ties=False):
    """Who says "good" more often is preferred."""
    found = []
    drawn = iter(texts(20 * count, seed))
    for a, b in zip(drawn, drawn, strict=True):
        a, b = sorted((a, b), key=goodness, reverse=True)
        tie = goodness(a) == goodness(b)
        if tie <= ties:
            found.append(Comparison(f"question {len(found)}", a, b, tie=tie))
        if len(found) == count:
            return found
    raise AssertionError("too few texts")


def rankings(count=100):
    """Three, two and no "good"."""
    draw = random.Random(0)
    others = [word for word in WORDS if word != "good"]

    def text(good):
        words = ["good"] * good + draw.choices(others, k=5 - good)
        draw.shuffle(words)
        return " ".join(words)

    return [Ranking(f"question {i}", (text(3), text(2), text(0))) for i in range(count)]


def ratings(count=240):
    return [Rating(f"question {i % 60}", text, 10.0 + 2 * goodness(text)) for i, text in enumerate(texts(count))]


def small(seed=0):
    return RewardModel.small(
        texts(50), seed=seed, vocab_size=280, width=16, layers=1, heads=2, max_length=48, device="cpu"
    )


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.model.parameters()])


@pytest.mark.parametrize(
    ("judgements", "config"),
    [
        (comparisons(), QUICK),
        (comparisons(ties=True), QUICK),
        (rankings(), dataclasses.replace(QUICK, epochs=4)),
        (ratings(), dataclasses.replace(QUICK, epochs=4)),
    ],
    ids=["comparisons", "ties", "rankings", "ratings"],
)
def test_it_learns_every_kind(judgements, config):
    train, validation = split_preferences(judgements, 0.3)
    model = small()
    result = fit(model, train, validation, config)
    best = result.best
    assert best is not None
    assert best.pairs >= 20
    assert best.accuracy >= 0.95
    assert best.loss == min(report.loss for _, report in result.validation)
    assert assess(model, validation) == best  # the weights kept are those reported


def test_flipped_labels_teach_the_opposite():
    """Must fail: the same fit on exchanged labels gets the held-out pairs wrong."""
    train, validation = split_preferences(comparisons(), 0.3)
    model = small()
    fit(model, [Comparison(item.prompt, item.rejected, item.chosen) for item in train], (), QUICK)
    assert assess(model, validation).accuracy < 0.05


def test_random_labels_stop_early():
    draw = random.Random(0)
    noise = [
        item if draw.random() < 0.5 else Comparison(item.prompt, item.rejected, item.chosen) for item in comparisons()
    ]
    train, validation = split_preferences(noise, 0.3)
    model = small()
    result = fit(model, train, validation, dataclasses.replace(QUICK, epochs=30, evaluations=30, patience=3))
    assert len(result.train_losses) == result.steps < 30 * len(train) / 16
    assert result.best_step < result.steps
    assert assess(model, validation).loss == result.best.loss < result.validation[-1][1].loss


def test_ratings_come_back_in_the_raters_unit():
    model = small()
    fit(model, ratings(), (), dataclasses.replace(QUICK, epochs=6))
    scores = model(["good good good cat dog", "red cat dog sun moon"], ["question", "question"])
    assert scores == pytest.approx([16, 10], abs=1.5)


def test_ties_are_learned_and_calibrated():
    train, validation = split_preferences(comparisons(ties=True), 0.3)
    model = small()
    fit(model, train, validation, QUICK)
    assert model.tie_threshold > 0
    assert assess(model, validation).calibration.ece < 0.2


def test_margins_push_scores_apart():
    def gap(margin):
        """Mean difference, in logits, of the pairs that were learned."""
        model = small()
        pairs = [dataclasses.replace(item, margin=margin) for item in comparisons()]
        fit(model, pairs, (), QUICK)
        prompts = [item.prompt for item in pairs]
        chosen, rejected = [item.chosen for item in pairs], [item.rejected for item in pairs]
        return float((model.logits(prompts, chosen) - model.logits(prompts, rejected)).mean())

    assert gap(12.0) > gap(0.0) + 2


def test_a_seed_repeats_and_micro_batches_do_not_matter():
    def fitted(seed=0, **changes):
        model = small()
        fit(model, comparisons(48), (), dataclasses.replace(QUICK, epochs=1, **changes), seed=seed)
        return weights(model)

    before = torch.random.get_rng_state()
    assert torch.equal(fitted(), fitted())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(fitted(), fitted(seed=1))
    torch.testing.assert_close(fitted(micro_batch_tokens=120), fitted(), atol=1e-4, rtol=0)


def test_going_on_from_a_folder_is_going_on(tmp_path):
    model = small()
    fit(model, comparisons(48, ties=True), (), QUICK)
    model.save(tmp_path)
    loaded = load(tmp_path, device="cpu")
    for one in (model, loaded):
        fit(one, comparisons(48, seed=1, ties=True), (), QUICK, seed=1)
    # Not bit for bit: weights read from a file may lie otherwise in memory, and sums then round otherwise.
    torch.testing.assert_close(weights(model), weights(loaded), atol=1e-4, rtol=0)
    assert model.tie_threshold == pytest.approx(loaded.tie_threshold, abs=1e-4)
    fresh = small()
    fit(fresh, comparisons(48, seed=1, ties=True), (), QUICK, seed=1)
    assert not torch.allclose(weights(fresh), weights(loaded), atol=1e-2)  # must fail: starting anew


def test_bf16_learns_too():
    train, validation = split_preferences(comparisons(), 0.3)
    model = small()
    fit(model, train, validation, dataclasses.replace(QUICK, precision="bf16"))
    assert weights(model).dtype == torch.float32
    assert assess(model, validation).accuracy >= 0.95


def test_frozen_weights_stay():
    model = small()
    model.model.model.requires_grad_(False)
    trunk = {name: weight.clone() for name, weight in model.model.model.named_parameters()}
    head = model.model.score.weight.clone()
    fit(model, comparisons(32), (), QUICK)
    assert all(torch.equal(weight, trunk[name]) for name, weight in model.model.model.named_parameters())
    assert not torch.equal(model.model.score.weight, head)


def test_progress_and_schedules():
    seen = []
    fit(small(), comparisons(32), (), dataclasses.replace(QUICK, epochs=1), on_step=lambda *step: seen.append(step))
    assert [(step, steps) for step, steps, _ in seen] == [(1, 2), (2, 2)]
    for schedule, shape in (
        ("constant", lambda left: 1.0),
        ("linear", lambda left: left),
        ("cosine", lambda left: 0.5 * (1 - np.cos(np.pi * left))),
    ):
        config = FitConfig(learning_rate_schedule=schedule, warmup=0.1)
        expected = [1.0, shape(10 / 11), shape(1 / 11)]
        assert [_factor(config, step, 11) for step in (1, 2, 11)] == pytest.approx(expected)
    assert [_factor(FitConfig(warmup=0.4), step, 10) for step in (1, 2, 4)] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([], [], "no preferences"),
        (comparisons(2), comparisons(1), "1 prompts are on both sides"),
        (comparisons(2), ratings(1), "of kind 'comparison', the validation's of 'rating'"),
        ([Rating("p", "a", 1.0), Rating("p", "b", 1.0)], [], "all 2 ratings are 1.0"),
    ],
)
def test_bad_judgements_are_refused(train, validation, message):
    with pytest.raises(ValueError, match=message):
        fit(small(), train, validation, QUICK)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        FitConfig(learning_rate_schedule="cosin")
    with pytest.raises(ValueError, match="patience must be above 0"):
        FitConfig(patience=0)
    model = small()
    model.model.score.weight.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        fit(model, comparisons(32), (), QUICK)


# --- ensembles --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ensemble():
    train, validation = split_preferences(comparisons(64), 0.3)
    members, results = fit_ensemble(small, 3, train, validation, QUICK)
    assert [result.best.accuracy > 0.8 for result in results] == [True] * 3
    made = RewardEnsemble(members)
    made.normalise([item.prompt for item in train], [item.chosen for item in train])
    return made


def test_an_ensemble_is_its_members_mean_and_doubt(ensemble):
    completions, prompts = texts(6, seed=9), ["question"] * 6
    each = np.array([member(completions, prompts) for member in ensemble.members])
    assert len({*each[:, 0]}) == 3  # own seed, own bootstrap
    assert ensemble(completions, prompts) == pytest.approx(each.mean(0))
    careful = RewardEnsemble(ensemble.members, pessimism=2.0)
    assert careful(completions, prompts) == pytest.approx(each.mean(0) - 2 * each.std(0))
    assert RewardEnsemble(ensemble.members, reduction="min")(completions, prompts) == pytest.approx(each.min(0))


def test_an_ensemble_is_a_folder_of_folders(ensemble, tmp_path):
    careful = RewardEnsemble(ensemble.members, pessimism=0.5)
    careful.save(tmp_path / "many")
    loaded = load(tmp_path / "many", device="cpu")
    assert isinstance(loaded, RewardEnsemble)
    assert (loaded.name, loaded.pessimism, loaded.reduction) == ("many", 0.5, "mean")
    completions, prompts = texts(4, seed=9), ["question"] * 4
    assert loaded(completions, prompts) == pytest.approx(careful(completions, prompts), abs=1e-6)
    member = load(tmp_path / "many" / "member-1", device="cpu")
    assert member(completions, prompts) == pytest.approx(ensemble.members[1](completions, prompts), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "max"}, "unknown reduction"),
        ({"pessimism": -1.0}, "at least 0"),
        ({"pessimism": 1.0, "reduction": "min"}, "reduction='mean' only"),
    ],
)
def test_bad_ensembles_are_refused(ensemble, options, message):
    with pytest.raises(ValueError, match=message):
        RewardEnsemble(ensemble.members, **options)


def test_no_members_no_ensemble():
    with pytest.raises(ValueError, match="at least one"):
        RewardEnsemble([])
    with pytest.raises(ValueError, match="at least one"):
        fit_ensemble(small, 0, comparisons(2))
