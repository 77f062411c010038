import itertools
import pickle

import gymnasium as gym
import numpy as np
import pytest

from textgen_env import TextMDP
from textgen_env.tasks import match_corpus
from textgen_env.tasks.match_corpus import markov_oracle, random_return

SMALL = {"words": 3, "steps": 3, "sharpness": 1.5}
PAD, EOS, A, B, C = range(5)


@pytest.fixture
def oracle():
    return markov_oracle(**SMALL)


def everything(oracle, context=(B, A)):
    """Every completion, and its log-probability."""
    texts = list(itertools.product((A, B, C), repeat=SMALL["steps"]))
    return texts, np.array([oracle.log_prob(context, text).sum() for text in texts])


# The chain, against enumeration


def test_log_probabilities_are_those_of_the_table(oracle):
    table = oracle.log_probs_WWW
    assert oracle.log_prob((B, A), (C, C, B)) == pytest.approx([table[1, 0, 2], table[0, 2, 2], table[2, 2, 1]])
    assert np.exp(everything(oracle)[1]).sum() == pytest.approx(1)


def test_exact_figures_are_those_of_enumeration(oracle):
    _, log_probs = everything(oracle)
    probs = np.exp(log_probs)
    assert oracle.entropy()[1, 0] == pytest.approx(-(probs @ log_probs), abs=1e-12)
    other = markov_oracle(**SMALL, seed=1)
    _, others = everything(other)
    kl = oracle.expected(np.exp(other.log_probs_WWW), other.log_probs_WWW - oracle.log_probs_WWW)
    assert kl[1, 0] == pytest.approx(np.exp(others) @ (others - log_probs), abs=1e-12)
    assert kl.min() > 0.1
    assert oracle.expected(np.exp(oracle.log_probs_WWW), np.zeros((3, 3, 3))).max() == 0


def test_samples_follow_the_chain(oracle):
    texts, log_probs = everything(oracle)
    drawn = oracle.sample((B, A), 20_000, np.random.default_rng(0))
    shares = np.array([drawn.count(list(text)) for text in texts]) / len(drawn)
    noise = np.sqrt(np.exp(log_probs) / len(drawn))
    assert (np.abs(shares - np.exp(log_probs)) < 4.5 * noise).all()
    swapped = np.array(
        [oracle.log_prob((A, B), text).sum() for text in texts]
    )  # must fail: the context is read backwards
    assert not (np.abs(shares - np.exp(swapped)) < 4.5 * noise).all()


def test_what_is_no_word_has_no_probability(oracle):
    assert oracle.log_prob((A, A), (PAD, B, B, B)).tolist()[:3] == [-np.inf] * 3
    assert np.isfinite(oracle.log_prob((A, A), (PAD, B, B, B))[3])  # padding has left the context
    assert oracle.log_prob((A, A), (B, EOS))[1] == -np.inf


# The task


def test_the_optimum_of_its_reward_is_the_most_likely_completion():
    mdp = TextMDP(match_corpus(**SMALL, texts_per_prompt=2))
    oracle = markov_oracle(**SMALL)
    best = []
    for index, prompt in enumerate(mdp.prompts):
        texts, log_probs = everything(oracle, prompt.metadata["context_ids"])
        values = mdp.returns([mdp.complete(index, text, "length") for text in texts])
        assert values == pytest.approx(log_probs)
        assert mdp.oracle_completion(index).token_ids == texts[values.argmax()]
        best.append(values.max())
    assert mdp.optimal_return() == pytest.approx(np.mean(best))


def test_random_return_is_that_of_enumeration():
    oracle = markov_oracle(**SMALL)
    contexts = itertools.product((A, B, C), repeat=2)
    expected = np.mean([everything(oracle, context)[1].mean() for context in contexts])
    assert random_return(**SMALL) == pytest.approx(expected, abs=1e-12)


def test_the_declared_figures():
    oracle = markov_oracle()
    uniform = np.full((16, 16, 16), 1 / 16)
    collapsed = [
        oracle.log_prob(context, oracle.most_likely(context)).sum()
        for context in itertools.product(range(2, 18), repeat=2)
    ]
    assert oracle.entropy().mean() == pytest.approx(19.50, abs=0.005)
    assert -random_return() == pytest.approx(52.62, abs=0.005)
    assert oracle.expected(uniform, np.log(uniform) - oracle.log_probs_WWW).mean() == pytest.approx(19.35, abs=0.005)
    assert 12 * np.log(16) == pytest.approx(33.27, abs=0.005)
    assert -np.mean(collapsed) == pytest.approx(6.66, abs=0.005)


def test_the_corpus_is_a_sample_with_its_repeats():
    task = match_corpus(words=2, steps=2, texts_per_prompt=50)
    prompts = [prompt for split in task.splits.values() for prompt in split]
    assert len(prompts) == 4
    for prompt in prompts:
        assert len(prompt.references) == 50
        assert len(set(prompt.references)) <= 4  # there are no more texts: a set would have lost their frequencies
        assert {len(text.split()) for text in prompt.references} == {2}


def test_prompts_splits_and_seeds():
    task = match_corpus(texts_per_prompt=1)
    assert [len(task.splits[split]) for split in ("train", "validation", "test")] == [200, 27, 29]
    texts = [prompt.references for prompt in task.prompts()]
    assert texts == [prompt.references for prompt in match_corpus(texts_per_prompt=1).prompts()]
    assert texts != [prompt.references for prompt in match_corpus(texts_per_prompt=1, seed=1).prompts()]
    pickle.loads(pickle.dumps(task))


def test_the_mask_lets_words_through():
    env = gym.make("textgen_env/MatchCorpus-v0", task_kwargs={"texts_per_prompt": 1, "mask": True})
    _, info = env.reset(seed=0)
    assert np.flatnonzero(info["action_mask"]).tolist() == list(range(2, 18))
    env.action_space.seed(0)
    total, over = 0.0, False
    while not over:
        _, reward, over, _, info = env.step(env.action_space.sample(mask=info["action_mask"]))
        total += reward
    assert total == pytest.approx(
        markov_oracle().log_prob(info["completion"].prompt.metadata["context_ids"], info["completion"].token_ids).sum()
    )
    assert info["stop_reason"] == "length"


@pytest.mark.parametrize(("ids", "words_lost"), [((EOS,), 3), ((A, EOS), 2), ((PAD, PAD, PAD), 3), ((A, B, EOS), 1)])
def test_what_is_no_text_pays(ids, words_lost):
    mdp = TextMDP(match_corpus(**SMALL, texts_per_prompt=1))
    worst = markov_oracle(**SMALL).log_probs_WWW.min()
    value = mdp.returns([mdp.complete(0, ids, "eos" if EOS in ids else "length")])[0]
    assert -20.0 * words_lost + 3 * worst <= value <= -20.0 * words_lost
    assert value < random_return(**SMALL)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"words": 1}, "words must lie between 2 and 52, got 1"),
        ({"words": 53}, "words must lie between 2 and 52, got 53"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sharpness": -1.0}, "sharpness must be at least 0, got -1.0"),
        ({"texts_per_prompt": 0}, "texts_per_prompt must be at least 1, got 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        match_corpus(**kwargs)
