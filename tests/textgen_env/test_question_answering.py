"""A reader finds every answer in the passage; one who reads half of it does not."""

import re

import gymnasium as gym
import pytest

from textgen_env import TextMDP
from textgen_env.tasks import question_answering
from textgen_env.tasks.question_answering import FACTS, RUNG, only_the_question

VALUE = r"(?P<value>\w+)"
PERSON = r"(?P<person>\w+)"


def pattern(template):
    return re.compile(re.escape(template).replace(r"\{person\}", PERSON).replace(r"\{value\}", VALUE))


STATEMENTS = [(kind, pattern(line)) for kind, fact in FACTS.items() for line in fact.statements]
QUESTIONS = [(kind, pattern(line)) for kind, fact in FACTS.items() for line in (fact.what, fact.who)]


def only(found):
    """The one match."""
    (match,) = [(kind, each.groupdict()) for kind, each in found if each]
    return match


def told(passage):
    """The facts of a passage: (kind, person, value)."""
    for sentence in re.findall(r"[^.]+ \.", passage):
        kind, groups = only((kind, each.fullmatch(sentence.strip())) for kind, each in STATEMENTS)
        yield kind, groups["person"], groups["value"]


def answer(prompt, passage):
    """The answer that the passage gives to the prompt's question; the first fact of its kind where it gives none."""
    question = re.search(r"Question: (.*)\n", prompt.text)[1]
    wanted, groups = only((kind, each.fullmatch(question)) for kind, each in QUESTIONS)
    facts = [fact for fact in told(passage) if fact[0] == wanted and set(groups.values()) <= set(fact[1:])]
    if not facts:
        return None
    (kind, person, value) = facts[0]
    assert len(facts) == 1
    return FACTS[kind].statements[0].format(person=person, value=value).removesuffix(" .")


@pytest.mark.parametrize("kwargs", [{}, {"facts": 8, "phrasings": 3}, {"facts": 1, "num_prompts": 150}])
def test_every_answer_is_in_the_passage(kwargs):
    prompts = question_answering(**{"num_prompts": 600, **kwargs}).prompts()
    for prompt in prompts:
        assert (answer(prompt, prompt.metadata["passage"]),) == prompt.references
        assert prompt.text.startswith(prompt.metadata["passage"] + "\n")
        assert prompt.metadata["short_answer"] in prompt.references[0].split()


def test_the_first_sentence_is_not_enough():
    """Must fail: a reader who stops after it."""
    prompts = question_answering().prompts("test")
    first = [answer(prompt, prompt.metadata["passage"].split(" .")[0] + " .") for prompt in prompts]
    right = sum((each,) == prompt.references for each, prompt in zip(first, prompts, strict=True))
    assert 0.4 < right / len(prompts) < 0.6


def test_the_question_gives_the_hack_away():
    mdp = TextMDP(question_answering(), split="test")
    by_words = TextMDP(question_answering(reward="token_f1"), split="test")
    for index, prompt in enumerate(mdp.prompts):
        said = mdp.written(index, only_the_question(prompt))
        question = prompt.text.split("Question: ")[1]
        known = {"lives", "in", "is", "has", "a"}  # what any answer has
        assert set(said.text.split()) <= set(question.split()) | known
        words = sum(word != "a" for word in prompt.references[0].split())  # as SQuAD does, articles left out
        assert by_words.returns([said])[0] == pytest.approx(2 * (words - 1) / (2 * words - 1))
        assert mdp.returns([said])[0] == 0
    assert RUNG.hack.answer is only_the_question


def test_both_rewards_have_their_optimum_at_the_answer():
    for reward in ("exact_match", "token_f1"):
        env = gym.make("textgen_env/QuestionAnswering-v0", task_kwargs={"reward": reward, "num_prompts": 100})
        assert env.unwrapped.mdp.optimal_return() == 1


def test_questions_go_both_ways():
    prompts = question_answering().prompts("test")
    backwards = sum("Question: Who" in prompt.text for prompt in prompts)
    assert 0.4 < backwards / len(prompts) < 0.6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"facts": 0}, "facts must lie between 1 and 8, got 0"),
        ({"facts": 9}, "facts must lie between 1 and 8, got 9"),
        ({"phrasings": 4}, "phrasings must lie between 1 and 3, got 4"),
        ({"reward": "f1"}, "reward must be exact_match or token_f1; got 'f1'"),
        ({"facts": 1, "num_prompts": 1000}, "num_prompts=1000 is more than can be told apart: ask for 384 at most"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        question_answering(**kwargs)
