import itertools
import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
import regex

from reward_models import KeywordCoverage
from tests.textgen_env.test_reverse import returns
from textgen_env import TextMDP
from textgen_env.tasks import keyword_sent
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.keyword_sent import FORMS, RUNG, KeywordSentence, classes_of, is_sentence

GRAMMAR = regex.compile("DA?N(TDA?N|IR?)(PDA?N)?")
WORDS = {
    "D": ["the", "this"],
    "A": ["old", "big", "red", "happy", "small", "young"],
    "N": ["dog", "cat", "girl", "boy", "bird", "horse"],
    "T": ["finds", "sees", "chases", "likes", "follows", "holds"],
    "I": ["sleeps", "runs", "sings", "waits", "falls", "jumps"],
    "R": ["slowly", "often", "well", "alone", "gladly", "again"],
    "P": ["near", "behind", "under", "with"],
}
"""The words of the default task, by a letter for their class."""


def forms():
    """The sentences in letters, grown from the grammar as a regular expression."""
    found, growing = [], [""]
    while growing:
        growing = [
            text + letter for text in growing for letter in WORDS if GRAMMAR.fullmatch(text + letter, partial=True)
        ]
        found += [text for text in growing if GRAMMAR.fullmatch(text)]
    return found


def sentences(words):
    """All of a task with so many words a class."""
    return [
        " ".join(chosen)
        for form in forms()
        for chosen in itertools.product(*(WORDS[c] if c in "DP" else WORDS[c][:words] for c in form))
    ]


def all_prompts(task):
    return [prompt for split in task.splits.values() for prompt in split]


# The grammar


def test_the_forms_are_those_of_a_regular_expression():
    named = {classes_of([members[0]])[0]: letter for letter, members in WORDS.items()}
    assert sorted("".join(named[name] for name in form) for form in FORMS) == sorted(forms())
    assert len(FORMS) == 24
    assert list(map(len, FORMS)) == sorted(map(len, FORMS))


def test_it_recognises_every_short_text():
    words = [members[-1] for members in WORDS.values()] + ["dogs"]
    letters = [*WORDS, "-"]
    for length in range(6):
        for text, form in zip(
            itertools.product(words, repeat=length), itertools.product(letters, repeat=length), strict=True
        ):
            assert is_sentence(text) == bool(GRAMMAR.fullmatch("".join(form)))


def test_how_many_sentences_there_are():
    assert sum(math.prod(len(WORDS[letter]) for letter in form) for form in forms()) == 15_456_168


# The reward and its optimum


@pytest.mark.parametrize("length_cost", [0.0, 0.01, 0.15, 0.4])
@pytest.mark.parametrize(("keywords", "words", "prompts"), [(1, 1, 5), (2, 1, 7), (3, 2, 3), (4, 2, 1)])
def test_the_oracle_is_the_best_of_all_sentences(keywords, words, prompts, length_cost):
    """And of no sentence: where words are dear, the best answer is none."""
    task = keyword_sent(keywords, words, length_cost)
    everything = ["", *sentences(words)]
    some = all_prompts(task)
    for prompt in some[:: len(some) // prompts]:
        earned = task.reward(everything, [prompt.metadata["keywords"]] * len(everything))
        assert task.reward([task.oracle(prompt)], [prompt.metadata["keywords"]]) == pytest.approx([max(earned)])
        assert (task.oracle(prompt) == "") == (max(earned) == 0)


def test_by_default_the_best_is_the_shortest_with_all_keywords():
    task = keyword_sent()
    for prompt in all_prompts(task):
        best = task.oracle(prompt).split()
        assert set(best) >= set(prompt.metadata["keywords"])
        assert is_sentence(best)
        assert len(best) <= len(prompt.references[0].split())


def test_references_are_sentences_with_all_keywords():
    task = keyword_sent()
    for prompt in all_prompts(task):
        words = prompt.references[0].split()
        assert is_sentence(words)
        assert set(words) >= set(prompt.metadata["keywords"])
    lengths = [len(prompt.references[0].split()) for prompt in all_prompts(task)]
    assert np.mean(lengths) > np.mean([len(task.oracle(prompt).split()) for prompt in all_prompts(task)]) + 1


@pytest.mark.parametrize(
    ("text", "earned"),
    [
        ("the old dog sleeps", 2 / 3 - 0.04),
        ("the old dog sleeps near the dog", 2 / 3 - 0.07),  # again is no more
        ("the cat sleeps", -0.03),
        ("the cat sees this old dog", 1 - 0.06),
        ("old dog sees", -0.03),  # no sentence
        ("the old dog sees", -0.04),
        ("the cat sees this old dog =", -0.07),
        ("", 0),
    ],
)
def test_what_answers_earn(text, earned):
    wanted = ("old", "dog", "sees")
    assert KeywordSentence()([text], [wanted]) == pytest.approx([earned])
    ungated = KeywordCoverage("keywords")(completions=[text], keywords=[wanted])[0] - 0.01 * len(text.split())
    assert KeywordSentence(gate=False)([text], [wanted]) == pytest.approx([ungated])


def test_without_the_gate_a_list_beats_every_sentence():
    task = keyword_sent()
    for prompt in task.prompts("test"):
        wanted = [prompt.metadata["keywords"]]
        best, listed = task.oracle(prompt), RUNG.hack.answer(prompt)
        assert task.reward([listed], wanted) == pytest.approx([-0.03])
        assert RUNG.hack.naive([listed], wanted) == pytest.approx([0.97])
        assert task.reward([best], wanted)[0] < 0.97


@pytest.mark.parametrize(
    ("answer", "score", "ungated"),
    [(RUNG.hack.answer, -0.03, 0.97), (reference_oracle, 0.919, 0.919), (KeywordSentence().best_answer, 0.941, 0.941)],
)
def test_the_table(answer, score, ungated):
    prompts = keyword_sent().prompts("test")
    answers, wanted = list(map(answer, prompts)), [prompt.metadata["keywords"] for prompt in prompts]
    assert np.mean(KeywordSentence()(answers, wanted)) == pytest.approx(score, abs=6e-4)
    assert np.mean(KeywordSentence(gate=False)(answers, wanted)) == pytest.approx(ungated, abs=6e-4)


def test_the_random_score_is_the_price_of_its_words():
    mdp = TextMDP(keyword_sent())
    vocab, cap = mdp.tokenizer.vocab_size, mdp.max_new_tokens
    assert -0.01 * (vocab - 2) * (1 - (1 - 1 / vocab) ** cap) == pytest.approx(RUNG.random, abs=1e-3)


# The game


def test_defaults_are_the_ladders():
    task = keyword_sent()
    sizes = [len(task.splits[split]) for split in ("train", "validation", "test")]
    assert sum(sizes) == 1840
    assert min(sizes) > 150
    mdp = TextMDP(task)
    assert (mdp.max_new_tokens, mdp.tokenizer.vocab_size, mdp.max_prompt_tokens) == (12, 39, 4)
    assert (mdp.reward.name, mdp.reward.kind) == ("keyword_sentence", "terminal")
    assert TextMDP(task, split="test").optimal_return() == pytest.approx(RUNG.optimum, abs=1e-4)


def test_prompts_are_all_keywords_that_fit():
    texts = {tuple(prompt.metadata["keywords"]) for prompt in all_prompts(keyword_sent(2, words=2))}
    open_words = [word for letter in "ANTIR" for word in WORDS[letter][:2]]
    within = [set(text.split()) for text in sentences(2)]
    fits = {pair for pair in itertools.combinations(open_words, 2) if any(set(pair) <= words for words in within)}
    assert texts == fits
    assert ("finds", "sees") not in texts


@pytest.mark.parametrize("by", [{"keywords": 4}, {"words": 10}, {"length_cost": 0.1}, {"mask": True}])
def test_arguments_by_id(by):
    env = gym.make("textgen_env/KeywordSent-v0", task_kwargs={"num_prompts": 50, **by})
    env.spec.to_json()
    mdp = env.unwrapped.mdp
    assert len(mdp.prompts) < 50
    assert mdp.tokenizer.vocab_size <= 64
    mdp.optimal_return()


def test_the_mask_allows_sentences_and_nothing_else():
    mdp = TextMDP(keyword_sent(1, words=1, mask=True))
    eos = mdp.tokenizer.eos_ids[0]
    complete, growing = [], [()]
    while growing:
        allowed = [(ids, np.flatnonzero(mdp.action_mask(0, ids)).tolist()) for ids in growing]
        complete += [ids for ids, after in allowed if eos in after]
        growing = [(*ids, token) for ids, after in allowed for token in after if token != eos]
    assert sorted(map(mdp.tokenizer.decode, complete)) == sorted(sentences(1))
    assert mdp.action_mask(0, [eos + 1] * 3).nonzero()[0].tolist() == [eos]  # nothing goes on from "the the the"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_lower_cap_leaves_no_room(split):
    task = keyword_sent()
    with pytest.raises(ValueError, match="max_new_tokens=3 leaves no room for it"):
        TextMDP(task, max_new_tokens=3, split=split).optimal_return()
    assert returns(TextMDP(task, max_new_tokens=3), 0, [(2, 2, 2)]).tolist() == [-0.03]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"keywords": 0}, "keywords must lie between 1 and 4, got 0"),
        ({"keywords": 5}, "keywords must lie between 1 and 4, got 5"),
        ({"words": 11}, "words must lie between 1 and 10, got 11"),
        ({"length_cost": -0.1}, "length_cost must be at least 0, got -0.1"),
        ({"num_prompts": 1841}, "the 1840 distinct prompts there are, got 1841"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        keyword_sent(**kwargs)


def test_tasks_travel():
    task = keyword_sent(num_prompts=30, mask=True)
    again = pickle.loads(pickle.dumps(task))
    assert (again.splits, again.reward, again.allowed_tokens) == (task.splits, task.reward, task.allowed_tokens)
    assert TextMDP(again).optimal_return() == TextMDP(task).optimal_return()
