"""The topic can be read off one of the two sentences, whichever it is; and what the mask lets through."""

import re

import gymnasium as gym
import pytest

from textgen_env import TextMDP
from textgen_env.tasks import classification
from textgen_env.tasks.classification import LABELS, OneOf, contains_reference, every_label
from textgen_env.tasks.news_templates import ASIDES, TOPICS


def pattern(template):
    """Matches the sentences that a template makes, whatever fills its gaps."""
    return re.compile(re.sub(r"\\\{\w+\\\}", r"[\\w, ]+", re.escape(template)), re.IGNORECASE)


LEADS = [(label, pattern(lead)) for label, topic in TOPICS.items() for event in topic.events for lead in event.leads]


def topics_of(text):
    return {label for label, lead in LEADS if lead.fullmatch(text)}


def sentences(prompt):
    return re.split(r"(?<=\.) ", prompt.text.removesuffix("\nTopic:"))


def test_one_sentence_tells_the_topic():
    for prompt in classification(topics=7, num_prompts=400).prompts():
        found = [topics_of(sentence) for sentence in sentences(prompt)]
        assert sorted(found, key=len) == [set(), set(prompt.references)]
    assert not [aside for aside in ASIDES if topics_of(aside)]


def test_it_is_not_always_the_first():
    """Must fail: a reader of the first sentence alone."""
    prompts = classification().prompts("test")
    right = sum(topics_of(sentences(prompt)[0]) == set(prompt.references) for prompt in prompts)
    assert 0.35 < right / len(prompts) < 0.65


def reachable(mdp, index):
    """Every text that the mask lets through."""
    found, begun = set(), [()]
    while begun:
        actions = begun.pop()
        for token in mdp.task.allowed_tokens(mdp.prompts[index], actions, mdp.tokenizer):
            if token in mdp.tokenizer.eos_ids:
                found.add(mdp.tokenizer.decode(actions))
            else:
                begun.append((*actions, token))
    return found


def test_the_mask_makes_it_a_bandit():
    mdp = gym.make("textgen_env/Classification-v0", task_kwargs={"mask": True, "num_prompts": 200}).unwrapped.mdp
    for index in range(5):
        assert reachable(mdp, index) == set(LABELS[:4])
    assert mdp.optimal_return() == 1


def test_one_label_may_begin_another():
    rows = [{"text": f"text {n}", "label": label} for n, label in enumerate(("good", "good enough", "bad"))]
    mdp = TextMDP(classification(data=rows, mask=True, fractions=(1, 0, 0)), max_new_tokens=20)
    assert mdp.task.allowed_tokens == OneOf(("bad", "good", "good enough"))
    assert reachable(mdp, 0) == {"good", "good enough", "bad"}


def test_difficulty():
    for topics in (2, 7):
        mdp = gym.make("textgen_env/Classification-v0", task_kwargs={"topics": topics}).unwrapped.mdp
        assert {prompt.references[0] for prompt in mdp.prompts} == set(LABELS[:topics])
        assert mdp.optimal_return(range(200)) == 1


def test_the_hack_is_every_label_there_is_by_default():
    prompts = classification().prompts("test")
    assert set(every_label(prompts[0]).split()) == {prompt.references[0] for prompt in prompts}
    known = [list(prompt.references) for prompt in prompts]
    answers = [every_label(prompt) for prompt in prompts]
    assert set(contains_reference(answers, known)) == {1.0}
    mdp = TextMDP(classification(), split="test")
    assert not mdp.returns([mdp.written(index, text) for index, text in enumerate(answers)]).any()


@pytest.mark.parametrize("topics", [1, 8])
def test_bad_arguments(topics):
    with pytest.raises(ValueError, match=f"topics must lie between 2 and 7, got {topics}"):
        classification(topics=topics)
