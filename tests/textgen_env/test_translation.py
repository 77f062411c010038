"""A translator that knows the rules is right on every sentence; without any one of them it is not."""

import gymnasium as gym
import pytest

from textgen_env import TextMDP
from textgen_env.tasks import translation
from textgen_env.tasks.translation import (
    AFTER,
    BEFORE,
    DETERMINERS,
    OBJECTS,
    SUBJECTS,
    VERBS,
    word_by_word,
)

RULES = frozenset(("order", "gender", "de", "halves"))
"""Adjectives after the noun; agreement; "a" under a negation; "ne" before and "pas" after the verb."""
NOUNS = {
    english: (french, gender)
    for tables in (SUBJECTS, OBJECTS)
    for gender, table in enumerate(tables)
    for english, french in table.items()
}
BARE = {infinitive: french for infinitive, french in VERBS.values()}


def noun_phrase(words, rules, negated=False):
    determiner, *adjectives, noun = words
    french, gender = NOUNS[noun]
    gender = gender if "gender" in rules else 0
    found = ["de" if determiner == "a" and negated and "de" in rules else DETERMINERS[determiner][gender]]
    found += [BEFORE[each][gender] for each in adjectives if each in BEFORE]
    late = [AFTER[each][gender] for each in adjectives if each in AFTER]
    return [*found, french, *late] if "order" in rules else [*found, *late, french]


def translate(english, rules=RULES):
    words = english.split()
    if "does" in words:
        at = words.index("does")
        verb, rest = BARE[words[at + 2]], words[at + 3 :]
        verbal = ["ne", verb, "pas"] if "halves" in rules else ["ne", "pas", verb]
    else:
        at = next(place for place, word in enumerate(words) if word in VERBS)
        rest, verbal = words[at + 1 :], [VERBS[words[at]][1]]
    return " ".join([*noun_phrase(words[:at], rules), *verbal, *noun_phrase(rest, rules, "does" in words)])


@pytest.fixture(scope="module")
def prompts():
    return translation().prompts("test")


def share_right(prompts, rules):
    right = [translate(prompt.text.removesuffix("\nFrench:"), rules) == prompt.references[0] for prompt in prompts]
    return sum(right) / len(right)


def test_the_rules_give_every_reference(prompts):
    assert share_right(prompts, RULES) == 1


@pytest.mark.parametrize(("rule", "at_most"), [("order", 0.6), ("gender", 0.4), ("de", 0.95), ("halves", 0.6)])
def test_every_rule_is_needed(rule, at_most, prompts):
    """Must fail: a translator that lacks one."""
    assert share_right(prompts, RULES - {rule}) < at_most


def test_word_by_word_is_wrong_on_most(prompts):
    assert sum(word_by_word(prompt) == prompt.references[0] for prompt in prompts) < 0.1 * len(prompts)


@pytest.mark.parametrize("reward", ["bleu", "chrf"])
def test_any_other_order_of_the_words_earns_less(reward):
    mdp = TextMDP(translation(num_prompts=60, reward=reward))
    for index, prompt in enumerate(mdp.prompts[:20]):
        words = prompt.references[0].split()
        others = [" ".join([*words[:at], words[at + 1], words[at], *words[at + 2 :]]) for at in range(len(words) - 1)]
        others += [" ".join(words[:-1]), " ".join([*words, words[-1]])]
        returns = mdp.returns([mdp.written(index, text) for text in others if text != prompt.references[0]])
        assert returns.max() < 1
    assert mdp.optimal_return() == 1


def test_difficulty():
    def english(**kwargs):
        mdp = gym.make("textgen_env/Translation-v0", task_kwargs={"num_prompts": 300, **kwargs}).unwrapped.mdp
        assert mdp.optimal_return() == 1
        return [prompt.text for prompt in mdp.prompts]

    assert 0.4 < sum(" not " in text for text in english()) / len(english()) < 0.6
    assert not any(" not " in text for text in english(negation=False))
    assert {len(text.split()) - 1 for text in english()} == {5, 6, 7, 8, 9}


def test_bad_arguments():
    with pytest.raises(ValueError, match="reward must be bleu or chrf; got 'rouge_1'"):
        translation(reward="rouge_1")
