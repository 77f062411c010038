import itertools
import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from textgen_env import TextMDP
from textgen_env.tasks.steer_kl import RUNG, RegularisedValues, Steering, WordValues, repeat_the_first_word, steer_kl

SMALL = {"words": 3, "steps": 3, "positive": 1, "sharpness": 1.5, "beta": 0.7}
PAD, EOS, A, B, C = range(5)
CONTEXT = (B, A)


@pytest.fixture
def steering():
    return Steering(**SMALL)


def everything(steering, context=CONTEXT):
    """Every completion, its log-probability under the prior, and r."""
    texts = list(itertools.product((A, B, C), repeat=steering.steps))
    log_p = np.array([steering.prior.log_prob(context, text).sum() for text in texts])
    return texts, log_p, np.array([sum(1.0 if token == A else -1.0 for token in text) for text in texts])


def log_prob(tables, context, text):
    """log π(text) of a chain that may depend on the place."""
    seen = np.array([*context, *text]) - 2
    return sum(
        table[tuple(seen[t : t + 3])]
        for t, table in enumerate(np.broadcast_to(tables, (len(text), *tables.shape[-3:])))
    )


def at(tables_WW, context=CONTEXT):
    return float(tables_WW[context[0] - 2, context[1] - 2])


# The optimum, against enumeration


@pytest.mark.parametrize("context", list(itertools.product((A, B, C), repeat=2)))
def test_the_optimum_is_the_log_partition_of_whole_completions(steering, context):
    texts, log_p, values = everything(steering, context)
    exact = steering.beta * np.logaddexp.reduce(log_p + values / steering.beta)
    assert at(steering.optimum_WW, context) == pytest.approx(exact, abs=1e-12)
    found = [log_prob(steering.log_policy_TWWW, context, text) for text in texts]
    assert found == pytest.approx(log_p + (values - exact) / steering.beta, abs=1e-12)


def test_its_reward_and_its_kl_are_those_of_enumeration(steering):
    _, log_p, values = everything(steering)
    log_best = log_p + (values - at(steering.optimum_WW)) / steering.beta
    best, chain = np.exp(log_best), steering.prior
    policy = steering.log_policy_TWWW
    reward = at(chain.expected(np.exp(policy), steering.values_W))
    kl = at(chain.expected(np.exp(policy), policy - chain.log_probs_WWW))
    assert reward == pytest.approx(best @ values, abs=1e-12)
    assert kl == pytest.approx(best @ (log_best - log_p), abs=1e-12)
    assert reward - steering.beta * kl == pytest.approx(at(steering.optimum_WW), abs=1e-12)


def some_policies(steering):
    shape = (steering.steps, *steering.prior.log_probs_WWW.shape)
    drawn = np.random.default_rng(0).standard_normal(shape)
    return {
        "prior": steering.prior.log_probs_WWW,
        "uniform": np.full(shape[1:], -np.log(steering.words)),
        "any": drawn - np.logaddexp.reduce(drawn, axis=-1, keepdims=True),
        "best": steering.log_policy_TWWW,
    }


@pytest.mark.parametrize("name", ["prior", "uniform", "any", "best"])
def test_what_a_policy_lacks_is_its_divergence_from_the_optimum(steering, name):
    tables = some_policies(steering)[name]
    texts, log_p, values = everything(steering)
    log_q = np.array([log_prob(tables, CONTEXT, text) for text in texts])
    log_best = np.array([log_prob(steering.log_policy_TWWW, CONTEXT, text) for text in texts])
    exact = np.exp(log_q) @ (values - steering.beta * (log_q - log_p))
    assert at(steering.objective_WW(tables)) == pytest.approx(exact, abs=1e-12)
    lacks = steering.beta * np.exp(log_q) @ (log_q - log_best)
    assert at(steering.optimum_WW) - exact == pytest.approx(lacks, abs=1e-12)
    assert (lacks > 0.1) == (name != "best")


def test_other_policies_are_seen_to_be_worse(steering):
    """Must fail: one that takes no note of how many words are left, and those of another price."""
    best = at(steering.optimum_WW)
    wrong = [np.repeat(steering.log_policy_TWWW[:1], 3, axis=0), steering.log_policy_TWWW[::-1]]
    wrong += [replace(steering, beta=beta).log_policy_TWWW for beta in (0.35, 1.4)]
    assert all(at(steering.objective_WW(tables)) < best - 1e-3 for tables in wrong)


def test_a_free_prior_costs_nothing_and_a_dear_one_is_kept():
    cheap, dear = (Steering(**{**SMALL, "beta": beta}) for beta in (0.01, 1000.0))
    assert at(cheap.optimum_WW) == pytest.approx(3, abs=0.1)
    own = at(dear.prior.expected(np.exp(dear.prior.log_probs_WWW), dear.values_W))
    assert at(dear.optimum_WW) == pytest.approx(own, abs=0.01)


def test_the_declared_figures():
    steering = Steering()
    prior = steering.prior
    best = steering.log_policy_TWWW
    shape = prior.log_probs_WWW.shape
    uniform = np.full(shape, -np.log(16))
    assert steering.optimum_WW.mean() == pytest.approx(3.16, abs=0.005)
    assert prior.expected(np.exp(best), steering.values_W).mean() == pytest.approx(8.85, abs=0.005)
    assert prior.expected(np.exp(best), best - prior.log_probs_WWW).mean() == pytest.approx(11.38, abs=0.005)
    assert steering.objective_WW(prior.log_probs_WWW).mean() == pytest.approx(-5.36, abs=0.005)
    assert steering.objective_WW(uniform).mean() == pytest.approx(-7.29, abs=0.005)
    assert prior.expected(np.exp(uniform), uniform - prior.log_probs_WWW).mean() == pytest.approx(4.59, abs=0.005)
    hack = RegularisedValues(steering)
    contexts = list(itertools.product(range(2, 18), repeat=2))
    assert np.mean(hack([[A] * 10] * 256, contexts)) == pytest.approx(-6.90, abs=0.005)
    test = steer_kl(texts_per_prompt=1).splits["test"]
    rows = tuple(np.array([prompt.metadata["context_ids"] for prompt in test]).T - 2)
    assert steering.optimum_WW[rows].mean() == pytest.approx(RUNG.optimum, abs=1e-4)
    assert steering.objective_WW(uniform)[rows].mean() == pytest.approx(RUNG.random, abs=1e-4)


# The task


def test_it_pays_what_words_are_worth_as_they_come():
    env = gym.make("textgen_env/SteerKL-v0", task_kwargs={**SMALL, "texts_per_prompt": 1})
    _, info = env.reset(seed=0)
    paid = []
    for token in (A, C, A):
        assert np.flatnonzero(info["action_mask"]).tolist() == [A, B, C]
        _, reward, over, _, info = env.step(token)
        paid.append(reward)
    assert over
    assert paid == [1, -1, 1]
    assert info["stop_reason"] == "length"


def test_what_is_no_word_pays_like_a_bad_one(steering):
    assert WordValues(steering)([[A, B, PAD, EOS]]) == [[1, -1, -1, -1]]
    with pytest.raises(ValueError, match="outside the game's own vocabulary of 5"):
        WordValues(steering)([[5]])


def test_the_regularised_reward_is_j_of_the_policy_that_always_writes_it(steering):
    texts, log_p, values = everything(steering)
    found = RegularisedValues(steering)([list(text) for text in texts], [CONTEXT] * len(texts))
    assert found == pytest.approx(values + steering.beta * log_p)
    assert max(found) < at(steering.optimum_WW)  # no single text is worth what the best mixture is
    assert RegularisedValues(steering)([[A, EOS]], [CONTEXT])[0] < -20 * steering.beta


def test_the_task_s_own_reward_is_maximised_by_repeating_a_word():
    mdp = TextMDP(steer_kl(**SMALL, texts_per_prompt=1))
    assert mdp.optimal_return() == 3
    assert repeat_the_first_word(mdp.prompts[0], steps=3) == "a a a"


def test_references_are_samples_of_the_prior():
    task = steer_kl(texts_per_prompt=2)
    assert [len(task.splits[split]) for split in ("train", "validation", "test")] == [200, 27, 29]
    assert {len(text.split()) for prompt in task.prompts() for text in prompt.references} == {10}
    steering = Steering(**SMALL)
    many = steer_kl(**SMALL, texts_per_prompt=4000).prompts()[0]
    texts, log_p, _ = everything(steering, many.metadata["context_ids"])
    drawn = np.array([many.references.count(" ".join("abc"[token - 2] for token in text)) for text in texts]) / 4000
    assert (np.abs(drawn - np.exp(log_p)) < 4.5 * np.sqrt(np.exp(log_p) / 4000)).all()
    pickle.loads(pickle.dumps(task))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"positive": 0}, "positive must lie between 1 and words - 1 = 15, got 0"),
        ({"positive": 16}, "positive must lie between 1 and words - 1 = 15, got 16"),
        ({"beta": 0.0}, "beta must be above 0, got 0.0"),
        ({"words": 53}, "words must lie between 2 and 52, got 53"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"texts_per_prompt": 0}, "texts_per_prompt must be at least 1, got 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        steer_kl(**kwargs)
