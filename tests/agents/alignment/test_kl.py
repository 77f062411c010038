import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.alignment.answers import Side, play
from agents.alignment.kl import Mean, best_of_n_curve, best_of_n_kl, expected_best, kl_samples, kl_to
from agents.evaluation import evaluate
from agents.saved import PlainModel
from tests.agents.conftest import PROMPTS, gpt2_config, make_agent, make_env, make_mdp, make_policy


def plain(mdp, spread, vocab_size=8):
    config = gpt2_config(vocab_size, spread=spread)
    return PlainModel(config, make_env(mdp=mdp), seed=1, device="cpu").policy


@pytest.fixture(scope="module")
def game():
    """Three tokens (padding is one too), three steps: 15 completions, each once, with what the policy makes of them."""
    mdp = make_mdp(prompts=["a"], words="a", max_new_tokens=3)
    policy, reference, uniform = (plain(mdp, spread, 3) for spread in (0.25, 0.1, 0.01))
    drawn = play(Side("uniform", uniform, mdp), [0], 600, seed=0)
    rows = {completion.token_ids: row for row, completion in enumerate(drawn.completions)}
    every = drawn.select(sorted(rows.values()))
    with torch.no_grad():
        log_probs, theirs = (one.score(every)[0].sum(-1).double().numpy() for one in (policy, reference))
    return SimpleNamespace(mdp=mdp, policy=policy, reference=reference, every=every, log_probs=log_probs, theirs=theirs)


def test_every_estimator_has_the_enumerated_kl_for_its_mean(game):
    probabilities = np.exp(game.log_probs)
    assert len(game.every) == 15
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    exact = (probabilities * (game.log_probs - game.theirs)).sum()
    assert exact > 0.05
    found = kl_samples(game.reference, game.policy, game.every)
    for name in ("exact", "k1", "k3"):
        assert (probabilities * found[name]).sum() == pytest.approx(exact, abs=1e-5)
    assert (probabilities * found["k1"] ** 2 / 2).sum() != pytest.approx(exact, rel=0.02)  # must fail: k2 is biased


def test_standard_errors_are_the_enumerated_ones(game):
    probabilities = np.exp(game.log_probs)
    played = play(Side("model", game.policy, game.mdp), [0], 1500, seed=0)
    values, sampled = (kl_samples(game.reference, game.policy, some) for some in (game.every, played))
    errors = {}
    for name in ("exact", "k1", "k3"):
        mean = (probabilities * values[name]).sum()
        deviation = math.sqrt((probabilities * (values[name] - mean) ** 2).sum())
        apart = Mean.of(sampled[name], range(len(played)))  # one prompt only: each sample is a unit here
        errors[name] = apart.standard_error
        assert apart.standard_error == pytest.approx(deviation / math.sqrt(len(played)), rel=0.15)
        assert abs(apart.value - mean) < 4 * apart.standard_error
    assert errors["exact"] < errors["k1"]


def test_a_model_is_at_no_distance_from_itself(game):
    found = kl_to(copy.deepcopy(game.policy), game.policy, game.every)
    assert (found.exact.value, found.k1.value, found.k3.value) == pytest.approx((0, 0, 0), abs=1e-6)


def test_k1_is_that_of_evaluate():
    agent = make_agent()
    with torch.no_grad():
        agent.policy.model.get_output_embeddings().weight *= 1.5
    mdp = make_mdp()
    found = evaluate(agent, mdp, num_prompts=6, samples_per_prompt=4)
    played = play(Side("model", agent.policy, mdp), range(len(PROMPTS)), 4, seed=0)
    kl = kl_to(agent.reference, agent.policy, played)
    assert kl.k1.value == pytest.approx(found.kl_per_sequence, abs=1e-5)
    assert kl.per_token == pytest.approx(kl.exact.value * len(played) / played.num_tokens, rel=1e-5)


def test_tokens_that_are_not_allowed_count_nothing():
    def only_a(prompt, actions, tokenizer):
        return [1, 2]

    mdp = make_mdp(allowed_tokens=only_a)
    policies = [plain(mdp, spread) for spread in (0.6, 0.3)]
    played = play(Side("model", policies[0], mdp), range(6), 2, seed=0)
    found = kl_samples(policies[1], policies[0], played)
    assert all(np.isfinite(values).all() for values in found.values())
    assert found["exact"].min() >= 0


def test_other_tokens_are_refused():
    with pytest.raises(ValueError, match="same tokens on both sides, got 40 and 41"):
        kl_samples(make_policy(vocab_size=41), make_policy(), None)


# --- best of n ------------------------------------------------------------------------------------------


def test_best_of_n_kl_by_enumeration():
    """Of 400 equally likely completions with distinct scores: P(best is the i-th) = (i^n − (i − 1)^n)/400^n."""
    places = np.arange(1, 401) / 400
    for n in (2, 4, 16):
        best = places**n - (places - 1 / 400) ** n
        kl = (best * np.log(best * 400)).sum()
        assert best_of_n_kl(n) == pytest.approx(kl, abs=0.02)
        assert kl <= best_of_n_kl(n)


def test_the_expected_best_is_that_of_all_subsets():
    scores = np.array([[0.3, 0.1, 0.7, 0.7, 0.2], [5.0, 1.0, 2.0, 3.0, 4.0]])
    for n in range(1, 6):
        expected = [np.mean([max(some) for some in itertools.combinations(row, n)]) for row in scores]
        assert expected_best(scores, n) == pytest.approx(expected)
    with pytest.raises(ValueError, match="best of 6"):
        expected_best(scores, 6)


def test_the_curve_rises_from_the_references_mean():
    scores = np.random.default_rng(0).normal(size=(50, 9))
    curve = best_of_n_curve(scores)
    assert [point.label for point in curve] == ["best of 1", "best of 2", "best of 4", "best of 8"]
    assert curve[0].reward.value == pytest.approx(scores.mean())
    rewards = [point.reward.value for point in curve]
    assert rewards == sorted(rewards)
    assert curve[0].kl == 0


def test_one_prompt_has_no_standard_error():
    assert Mean.of([1.0, 2.0], ["p", "p"]) == Mean(1.5, None)
