"""The table of ToyMT's docstring recomputed; its language against a second writing-down of it, and its noise."""

import itertools
import math
import pickle
from collections import Counter, defaultdict

import gymnasium as gym
import numpy as np
import pytest

from reward_models import Rouge
from textgen_env import TextMDP
from textgen_env.tasks import toy_mt
from textgen_env.tasks.dataset import split_of
from textgen_env.tasks.toy_mt import RUNG, Phrase, Sentence, TranslationBleu, translate, word_by_word

STEMS = {
    **{"the": "l", "a": "un", "red": "rub", "big": "gran", "old": "vet", "new": "nov"},
    **{"dog": "kano", "cow": "vaka", "boy": "puero", "girl": "mina"},
    **{"horse": "ekvo", "moon": "luna", "bird": "avo", "house": "kasa"},
    **{"sees": "vidat", "hears": "audat", "likes": "amat", "finds": "trovat", "takes": "prenat"},
    **{"paints": "pintat", "follows": "segat", "helps": "yudat", "leaves": "lasat", "calls": "klamat"},
}
"""The lexicon: of determiners and adjectives the stem, which takes the noun's last letter."""


def translated(source):
    """The grammar on the words of a prompt."""
    d1, a1, n1, verb, d2, a2, n2 = (STEMS[word] for word in source.split()[:7])
    return f"{d1}{n1[-1]} {n1} {a1}{n1[-1]} {d2}{n2[-1]} {n2} {a2}{n2[-1]} {verb}"


def copied(source):
    """Word by word, all masculine."""
    d1, a1, n1, verb, d2, a2, n2 = (STEMS[word] for word in source.split()[:7])
    return f"{d1}o {a1}o {n1} {verb} {d2}o {a2}o {n2}"


def all_prompts(task):
    return [prompt for split in task.splits.values() for prompt in split]


def is_wrong(prompt):
    return prompt.references != (prompt.metadata["translation"],)


def sentence(prompt):
    d1, a1, n1, verb, d2, a2, n2 = prompt.text.split()[:7]
    return Sentence(Phrase(d1, a1, n1), verb, Phrase(d2, a2, n2))


# The language


def test_translations_follow_the_grammar():
    for prompt in all_prompts(toy_mt()):
        assert prompt.metadata["translation"] == translate(sentence(prompt)) == translated(prompt.text)
        assert word_by_word(sentence(prompt)) == copied(prompt.text) != prompt.metadata["translation"]
    cow = Sentence(Phrase("the", "red", "cow"), "sees", Phrase("a", "big", "dog"))
    assert translate(cow) == "la vaka ruba uno kano grano vidat"
    assert word_by_word(cow) == "lo rubo vaka vidat uno grano kano"


def test_nothing_is_lost_in_translation():
    """No two sources have one translation, so that no answer is right twice."""
    prompts = all_prompts(toy_mt())
    assert len({prompt.metadata["translation"] for prompt in prompts}) == len(prompts) == 2048


# The reward and its optimum


def test_the_right_translation_is_the_best_there_is():
    """BLEU is at most 1. No other order of its words reaches that, and no text one edit away."""
    task = toy_mt()
    words = [word for word in task.vocabulary if word[-1] in "oat" and word not in ("a", "the")]
    for prompt in task.prompts("test")[:2]:
        right = tuple(prompt.metadata["translation"].split())
        others = set(itertools.permutations(right))
        for place in range(len(right) + 1):
            others |= {right[:place] + right[place + 1 :], right[:place]}
            others |= {(*right[:place], word, *right[place + gone :]) for word in words for gone in (0, 1)}
        others = [" ".join(other) for other in others - {right}]
        assert max(task.reward(others, [prompt.metadata["translation"]] * len(others))) < 1
    assert task.reward.bounds[1] == 1


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_oracle_reaches_it_on_every_prompt(split):
    """On the train split too, where a reference may be wrong."""
    mdp = TextMDP(toy_mt(), split=split)
    oracle = [mdp.oracle_completion(index) for index in range(len(mdp.prompts))]
    assert mdp.returns(oracle) == pytest.approx(1)
    assert {completion.stop_reason for completion in oracle} == {"eos"}
    assert mdp.optimal_return() == pytest.approx(RUNG.optimum)


def test_the_references_of_train_do_not():
    """Must fail: the references in the oracle's place."""
    mdp = TextMDP(toy_mt())
    written = mdp.returns([mdp.written(index, prompt.references[0]) for index, prompt in enumerate(mdp.prompts)])
    wrong = np.array([is_wrong(prompt) for prompt in mdp.prompts])
    assert written[~wrong] == pytest.approx(1)
    assert written[wrong].max() < 0.5


def test_a_word_and_no_more():
    """One n-gram of one, order 1 alone: BLEU is the brevity penalty, e^(1 − 7)."""
    held_out = TextMDP(toy_mt(), split="test")
    answers = [held_out.written(index, RUNG.hack.answer(prompt)) for index, prompt in enumerate(held_out.prompts)]
    assert held_out.returns(answers) == pytest.approx(math.exp(-6))
    assert RUNG.hack.robust_score == pytest.approx(math.exp(-6), abs=1e-4)


# The table


def imitation(task):
    """What perfect imitation of the train split says: for every verb, the manner of most of its references."""
    wrong = defaultdict(Counter)
    for prompt in task.splits["train"]:
        wrong[sentence(prompt).verb][is_wrong(prompt)] += 1
    for prompt in task.prompts("test"):
        careless = wrong[sentence(prompt).verb].most_common()[0][0]
        yield copied(prompt.text) if careless else translated(prompt.text)


def precision(mdp, texts):
    return Rouge("1", "precision")(list(texts), [[prompt.metadata["translation"]] for prompt in mdp.prompts])


TABLE = {
    "word by word": (0.097, 0.697, lambda task: [copied(prompt.text) for prompt in task.prompts("test")]),
    "first word": (0.002, 1.0, lambda task: map(RUNG.hack.answer, task.prompts("test"))),
    "imitation": (0.738, 0.917, imitation),
    "right": (1.0, 1.0, lambda task: [translated(prompt.text) for prompt in task.prompts("test")]),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_table(row):
    bleu, found, answers = TABLE[row]
    mdp = TextMDP(toy_mt(), split="test")
    texts = list(answers(mdp.task))
    returns = mdp.returns([mdp.written(index, text) for index, text in enumerate(texts)])
    assert (returns.mean(), np.mean(precision(mdp, texts))) == pytest.approx((bleu, found), abs=6e-4)


def test_independent_noise_is_averaged_out():
    """Must fail: with wrong references spread over all verbs, perfect imitation is right."""
    task = toy_mt(noise="sentences")
    assert list(imitation(task)) == [translated(prompt.text) for prompt in task.prompts("test")]


# The noise


@pytest.mark.parametrize(("corrupted", "careless"), [(0.3, 3), (0.0, 0), (1.0, 10), (0.26, 3)])
def test_some_verbs_are_always_wrong(corrupted, careless):
    manners = defaultdict(set)
    task = toy_mt(corrupted=corrupted)
    for prompt in task.splits["train"]:
        manners[sentence(prompt).verb].add(is_wrong(prompt))
        assert prompt.references[0] in (translated(prompt.text), copied(prompt.text))
    assert sorted(map(tuple, manners.values())) == [(False,)] * (10 - careless) + [(True,)] * careless
    assert not any(is_wrong(prompt) for split in ("validation", "test") for prompt in task.splits[split])


def test_or_some_sentences_of_every_verb():
    manners = defaultdict(list)
    for prompt in toy_mt(noise="sentences").splits["train"]:
        manners[sentence(prompt).verb].append(is_wrong(prompt))
    shares = [np.mean(found) for found in manners.values()]
    assert np.mean(shares) == pytest.approx(0.3, abs=0.04)
    assert 0.15 < min(shares) < max(shares) < 0.45


def test_seeds_draw_other_verbs():
    def careless(seed):
        return {sentence(prompt).verb for prompt in toy_mt(seed=seed).splits["train"] if is_wrong(prompt)}

    assert careless(0) == careless(0)
    assert len({frozenset(careless(seed)) for seed in range(5)}) > 1


# The game


def test_splits_are_by_content_and_draws_nest():
    small, large = toy_mt(num_prompts=100), toy_mt(num_prompts=300)
    for task in (small, large):
        for split, prompts in task.splits.items():
            assert {split_of(prompt.text) for prompt in prompts} == {split}
    texts = [[prompt.text for prompt in all_prompts(task)] for task in (small, large)]
    assert [len(set(found)) for found in texts] == [100, 300]
    assert set(texts[0]) < set(texts[1])
    assert not set(texts[0]) & {prompt.text for prompt in all_prompts(toy_mt(num_prompts=100, seed=1))}


def test_defaults_are_the_ladders():
    task = toy_mt()
    assert min(len(prompts) for prompts in task.splits.values()) > 150
    mdp = TextMDP(task)
    assert (mdp.max_new_tokens, mdp.tokenizer.vocab_size, mdp.max_prompt_tokens) == (10, 57, 8)
    assert (mdp.reward.name, mdp.reward.kind, mdp.reward.bounds) == ("bleu", "terminal", (0.0, 1.0))


def test_all_sentences_of_a_small_language():
    task = toy_mt(nouns=2, adjectives=1, verbs=2, num_prompts=16)
    assert len(all_prompts(task)) == 16  # 2 orders of the nouns, 2 x 2 determiners, 2 verbs
    assert {word for prompt in all_prompts(task) for word in prompt.text.split()} <= set(task.vocabulary)
    assert len(task.vocabulary) == 2 + 1 + 2 + 2 + 4 + 2 + 2 + 2 + 1


@pytest.mark.parametrize(
    "by", [{"nouns": 4}, {"adjectives": 2}, {"verbs": 5}, {"corrupted": 0.5}, {"noise": "sentences"}]
)
def test_arguments_by_id(by):
    env = gym.make("textgen_env/ToyMT-v0", task_kwargs={"num_prompts": 50, **by})
    env.spec.to_json()
    mdp = env.unwrapped.mdp
    assert len(mdp.prompts) < 50
    assert mdp.optimal_return() == pytest.approx(1)


def test_a_lower_cap_leaves_no_room():
    with pytest.raises(ValueError, match="max_new_tokens=6 leaves no room for it"):
        TextMDP(toy_mt(num_prompts=50), max_new_tokens=6).optimal_return()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"nouns": 1}, "nouns must lie between 2 and 8, got 1"),
        ({"nouns": 9}, "nouns must lie between 2 and 8, got 9"),
        ({"adjectives": 0}, "adjectives must lie between 1 and 4, got 0"),
        ({"verbs": 11}, "verbs must lie between 1 and 10, got 11"),
        ({"corrupted": 1.1}, r"corrupted must lie in \[0, 1\], got 1.1"),
        ({"noise": "words"}, "noise must be one of verbs, sentences; got 'words'"),
        ({"num_prompts": 0}, "between 1 and the 35840 distinct prompts there are, got 0"),
        ({"nouns": 2, "adjectives": 1, "verbs": 1}, "between 1 and the 8 distinct prompts there are, got 2048"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        toy_mt(**kwargs)


def test_tasks_travel():
    task = toy_mt(num_prompts=40)
    again = pickle.loads(pickle.dumps(task))
    assert (again.splits, again.reward) == (task.splits, task.reward) == (task.splits, TranslationBleu())
    assert TextMDP(again).optimal_return() == pytest.approx(1)
