import itertools
import pickle

import gymnasium as gym
import numpy as np
import pytest

from textgen_env import TextMDP
from textgen_env.tasks import match_corpus
from textgen_env.tasks.markov import markov_oracle
from textgen_env.tasks.match_corpus import OracleLogLikelihood

SMALL = {"words": 3, "steps": 3, "sharpness": 1.5, "intricate": 1, "loyalty": 0.5}
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


def test_the_declared_figures():
    chain = OracleLogLikelihood().chain
    uniform = np.full((16, 16, 16), 1 / 16)
    collapsed = [
        chain.log_prob(context, chain.most_likely(context)).sum()
        for context in itertools.product(range(2, 18), repeat=2)
    ]
    assert chain.entropy().mean() == pytest.approx(36.68, abs=0.005)
    assert chain.expected(uniform, -chain.log_probs_WWW).mean() == pytest.approx(96.42, abs=0.005)
    assert chain.expected(uniform, np.log(uniform) - chain.log_probs_WWW).mean() == pytest.approx(40.97, abs=0.005)
    assert 20 * np.log(16) == pytest.approx(55.45, abs=0.005)
    assert -np.mean(collapsed) == pytest.approx(14.64, abs=0.005)


def test_the_two_registers():
    words, intricate, loyalty = 6, 2, 1.5
    plain = markov_oracle(words, sharpness=0.5).log_probs_WWW
    logits = markov_oracle(words, sharpness=0.5, intricate=intricate, loyalty=loyalty).log_probs_WWW.copy()
    same = (np.arange(words) >= 4)[:, None] == (np.arange(words) >= 4)
    logits -= loyalty * same

    def centred(table):
        return table - table.mean(-1, keepdims=True)

    assert centred(logits)[:, :4] == pytest.approx(centred(plain)[:, :4])

    def both_ways(table):
        """What is left of logits when each word's own share is taken off: nothing, where words matter by themselves."""
        table = centred(table)
        return table - table.mean(0) - table.mean(1, keepdims=True) + table.mean((0, 1))

    assert np.abs(both_ways(logits[:, :4])).max() < 1e-12
    assert both_ways(logits[:, 4:]).std() > 0.5
    wide = markov_oracle(40, sharpness=0.5, intricate=20).log_probs_WWW
    assert centred(wide)[:, :20].std() == pytest.approx(0.5, rel=0.1)
    assert centred(wide)[:, 20:].std() == pytest.approx(2.0, rel=0.05)


def test_the_corpus_is_a_sample_with_its_repeats():
    task = match_corpus(words=2, steps=2, texts_per_prompt=50, intricate=0)
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
    written = info["completion"]
    chain = OracleLogLikelihood().chain
    assert total == pytest.approx(chain.log_prob(written.prompt.metadata["context_ids"], written.token_ids).sum())
    assert info["stop_reason"] == "length"


@pytest.mark.parametrize(("ids", "words_lost"), [((EOS,), 3), ((A, EOS), 2), ((PAD, PAD, PAD), 3), ((A, B, EOS), 1)])
def test_what_is_no_text_pays(ids, words_lost):
    mdp = TextMDP(match_corpus(**SMALL, texts_per_prompt=1))
    chain = markov_oracle(**SMALL)
    worst = chain.log_probs_WWW.min()
    value = mdp.returns([mdp.complete(0, ids, "eos" if EOS in ids else "length")])[0]
    assert -20.0 * words_lost + 3 * worst <= value <= -20.0 * words_lost
    assert value < chain.expected(np.full((3, 3, 3), 1 / 3), chain.log_probs_WWW).mean()  # uniformly random words


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"words": 1}, "words must lie between 2 and 52, got 1"),
        ({"words": 53}, "words must lie between 2 and 52, got 53"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sharpness": -1.0}, "sharpness must be at least 0, got -1.0"),
        ({"intricate": 17}, "intricate must lie between 0 and words=16, got 17"),
        ({"texts_per_prompt": 0}, "texts_per_prompt must be at least 1, got 0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        match_corpus(**kwargs)
