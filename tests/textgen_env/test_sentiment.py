"""The optimum by enumeration, the grammar against texts that are nearly right, and what the bare scorer falls for."""

import itertools
from collections import Counter

import gymnasium as gym
import pytest

from reward_models import LexiconSentiment
from textgen_env import TextMDP
from textgen_env.tasks import sentiment
from textgen_env.tasks.sentiment import NOUNS, RUNG, continuations, grammatical, most_positive, one_superlative


@pytest.fixture(scope="module")
def test_split():
    return TextMDP(sentiment(), split="test")


def every_text(noun):
    """The grammar a second time, as one product over places."""
    adverbs = ("", "very ", "slightly ")

    def said(noun):
        verb, adjectives = NOUNS[noun]
        return [f"{verb} {adverb}{adjective}" for adverb, adjective in itertools.product(adverbs, adjectives)]

    seconds = ["", *(f" and the {other} {clause}" for other in NOUNS if other != noun for clause in said(other))]
    return {f"{first}{second} {end}" for first, second, end in itertools.product(said(noun), seconds, ".!")}


@pytest.mark.parametrize("noun", NOUNS)
def test_the_optimum_by_enumeration(noun, test_split):
    texts = sorted(every_text(noun))
    assert len(texts) == 15 * 2 * (1 + 5 * 15)
    assert sorted(continuations(noun)) == texts
    scores = LexiconSentiment()(completions=texts)
    index = next(i for i, prompt in enumerate(test_split.prompts) if prompt.text.endswith(f"the {noun}"))
    best = test_split.oracle_completion(index)
    assert best.text in texts
    assert test_split.returns([best])[0] == max(scores) == scores[texts.index(best.text)]


def test_the_best_depends_on_the_noun(test_split):
    best = {prompt.text.split()[-1]: most_positive(prompt) for prompt in test_split.prompts}
    assert len(set(best.values())) == len(NOUNS)
    scores = {test_split.returns([test_split.oracle_completion(i)])[0] for i in range(len(test_split.prompts))}
    assert max(scores) - min(scores) > 0.02


@pytest.mark.parametrize(
    "text",
    [
        "was beautiful .",  # verb
        "were charming .",  # said of another noun
        "were beautiful and the rooms were clean .",  # the same noun twice
        "were beautiful and the music were wonderful .",
        "were beautiful and the music was wonderful",  # no end
        "were beautiful . !",
        "were very very beautiful .",
        "were clean and the music was lively and the beds were high",
        "",
        one_superlative(None),
    ],
)
def test_what_is_no_continuation_earns_the_least(text, test_split):
    index = next(i for i, prompt in enumerate(test_split.prompts) if prompt.text.endswith("the rooms"))
    wrong, worst = test_split.written(index, text), test_split.written(index, "were very horrible .")
    assert test_split.returns([wrong]).tolist() == [-1.0] < test_split.returns([worst]).tolist()
    assert grammatical([test_split.prompts[index].text] * 2, [text, "were very horrible ."]) == [0, 1]


def test_the_bare_scorer_prefers_the_hack(test_split):
    """Must fail without the grammar: the cheater then beats the best continuation of every prompt."""
    bare = TextMDP(test_split.task, "sentiment_lexicon", split="test")
    for index, prompt in enumerate(test_split.prompts):
        cheat, best = test_split.written(index, one_superlative(prompt)), test_split.oracle_completion(index)
        assert bare.returns([cheat])[0] > bare.returns([best])[0] > 0
        assert test_split.returns([cheat])[0] == -1
    assert RUNG.hack.answer is one_superlative


def test_imitation_earns_nothing():
    """What is said most often after each noun is neutral."""
    said = {}
    for prompt in sentiment().prompts():
        counted = said.setdefault(prompt.text.split()[-1], Counter())
        counted.update(
            reference.split(" and ")[0].removesuffix(" .").removesuffix(" !") for reference in prompt.references
        )
    frequent = [counted.most_common(1)[0][0] for counted in said.values()]
    assert len(frequent) == len(NOUNS)
    assert LexiconSentiment()(completions=frequent) == [0.0] * len(NOUNS)
    everything = [r for prompt in sentiment().prompts() for r in prompt.references]
    scores = LexiconSentiment()(completions=everything)
    assert abs(sum(scores) / len(scores)) < 0.1
    assert min(scores) < -0.7
    assert max(scores) > 0.7


def test_difficulty():
    mdp = gym.make("textgen_env/Sentiment-v0", task_kwargs={"nouns": 2, "num_prompts": 300}).unwrapped.mdp
    assert {prompt.text.split()[-1] for prompt in mdp.prompts} == {"rooms", "view"}
    assert mdp.optimal_return() > 0.8


@pytest.mark.parametrize("nouns", [1, 7])
def test_bad_arguments(nouns):
    with pytest.raises(ValueError, match=f"nouns must lie between 2 and 6, got {nouns}"):
        sentiment(nouns=nouns)


def test_no_more_openings_than_there_are():
    with pytest.raises(ValueError, match="num_prompts=2000 is more than can be told apart: ask for 1920 at most"):
        sentiment(num_prompts=2000)
