import dataclasses
from typing import Literal

import pytest

from agents.algorithms import ALGORITHMS
from agents.config import AlgorithmConfig, check_choice, make_config, scheduled
from agents.ppo import PPOConfig
from agents.supervised import SupervisedConfig
from tests.agents.conftest import make_agent


def test_every_option_has_a_line_of_help():
    for kind in (AlgorithmConfig, SupervisedConfig, *(config for _, config in ALGORITHMS.values())):
        assert all(field.metadata["help"] for field in dataclasses.fields(kind))


def test_overrides_change_single_fields_of_a_copy():
    given = PPOConfig(epochs=7, clip_range=0.1)
    config = make_config(PPOConfig, given, {"clip_range": 0.3})
    assert (config.epochs, config.clip_range, given.clip_range) == (7, 0.3, 0.1)
    assert make_config(PPOConfig, None, {}) == PPOConfig()


@pytest.mark.parametrize(
    ("name", "nearest"), [("clip_rage", "clip_range"), ("epoch", "epochs"), ("kl_coef", "kl_coef_per_sequence")]
)
def test_a_misspelled_option_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(TypeError, match=f"PPOConfig has no option '{name}'.*{nearest}"):
        make_agent(**{name: 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"episodes_per_rollout": 0}, "episodes_per_rollout must be above 0"),
        ({"num_envs": -1}, "num_envs must be above 0"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens must be above 0"),
        ({"episodes_per_rollout": 10, "samples_per_prompt": 4}, "must be a multiple of samples_per_prompt=4"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\]"),
        ({"learning_rate_warmup": 1.0}, r"learning_rate_warmup must lie in \[0, 1\), got 1.0"),
        ({"learning_rate_schedule": "cubic"}, "must be one of 'constant', 'linear', 'cosine'"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"clip_range": 0.0}, "clip_range must be above 0"),
        ({"minibatches": 13, "episodes_per_rollout": 12}, "13 minibatches need as many prompts, got 12"),
        (
            {"minibatches": 4, "episodes_per_rollout": 12, "samples_per_prompt": 6},
            "4 minibatches need as many prompts, got 2",
        ),
        ({"kl_coef_per_sequence": -0.1}, "would pay the policy for leaving"),
        ({"kl_coef_per_sequence": 0.0, "kl_target_per_sequence": 3.0}, "0 would stay 0"),
        ({"kl_estimator": "k4"}, "kl_estimator must be one of 'k1', 'k2', 'k3'"),
        ({"kl_in": "losses"}, "kl_in must be one of 'reward', 'loss'; did you mean 'loss'"),
        ({"kl_in": "loss"}, "k1 has an expected gradient of 0: take kl_estimator='k2' or 'k3'"),
        ({"learning_rate_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"prompt_baseline": True, "samples_per_prompt": 2, "gamma": 0.9}, "needs gamma = 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(**options)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0]),
        ("cosine", [1, (2 + 2**0.5) / 4, 0.5, 0]),  # (1 + cos of a quarter of π) / 2
    ],
)
def test_the_schedules_by_hand(schedule, factors):
    assert [scheduled(schedule, remaining) for remaining in (1, 0.75, 0.5, 0)] == pytest.approx(factors)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [0, 0.5, 1, 1, 1]), ("linear", [0, 0.5, 1, 0.5, 0]), ("cosine", [0, 0.5, 1, 0.5, 0])],
)
def test_the_learning_rate_rises_and_then_falls_over_what_is_left(schedule, factors):
    assert [scheduled(schedule, remaining, 0.2) for remaining in (1, 0.9, 0.8, 0.4, 0)] == pytest.approx(factors)


def test_a_choice_is_refused_with_the_nearest():
    check_choice("colour", "red", Literal["red", "green"])
    with pytest.raises(ValueError, match="colour must be one of 'red', 'green'; did you mean 'green'"):
        check_choice("colour", "gren", Literal["red", "green"])


@pytest.mark.parametrize(("epochs", "batch_size"), [(0.0, 32), (1.0, 0)])
def test_a_warm_start_needs_pairs_and_passes(epochs, batch_size):
    with pytest.raises(ValueError, match="must be above 0"):
        SupervisedConfig(epochs=epochs, batch_size=batch_size)
