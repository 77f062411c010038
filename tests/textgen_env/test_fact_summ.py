"""The table of FactSumm's docstring recomputed, its optimum against enumeration, and who solves it by cheating."""

import itertools
import pickle
import random

import gymnasium as gym
import numpy as np
import pytest

from reward_models import Factual, Rouge
from textgen_env import TextMDP
from textgen_env.tasks import fact_summ
from textgen_env.tasks.dataset import split_of
from textgen_env.tasks.fact_summ import RUNG, copy_document, say


@pytest.fixture(scope="module")
def test_split():
    return TextMDP(fact_summ(), split="test")


def shuffled(prompts):
    rng = random.Random(0)
    for prompt in prompts:
        words = prompt.references[0].split()
        rng.shuffle(words)
        yield " ".join(words)


TABLE = {
    "reference": ([1, 1, 1, 1, 1, 1], lambda prompts: [prompt.references[0] for prompt in prompts]),
    "copy": ([1, 0.5, 0.391, 0.5, 0.446, 1], lambda prompts: map(copy_document, prompts)),
    "shuffled": ([1, 1, 0.176, 0.532, 0.354, 0.093], shuffled),
    "last first": (
        [1, 1, 0.8, 0.5, 0.65, 1],
        lambda prompts: [say(prompt.metadata["facts"][::-1]) for prompt in prompts],
    ),
    "lead-2": (
        [0.33, 0.33, 0.28, 0.33, 0.305, 0.412],
        lambda prompts: [say(prompt.metadata["document_facts"][:2]) for prompt in prompts],
    ),
    "one fact": (
        [0.5, 0.667, 0.571, 0.667, 0.619, 0.667],
        lambda prompts: [say(prompt.metadata["facts"][:1]) for prompt in prompts],
    ),
}


def figures(mdp, texts):
    """A row of the table."""
    texts, prompts = list(texts), mdp.prompts
    references = [prompt.references for prompt in prompts]
    rouges = [Rouge("1", "recall"), Rouge("1"), Rouge("2"), Rouge("L")]
    scores = [np.mean(rouge(texts, references)) for rouge in rouges]
    scores.append(mdp.returns([mdp.written(index, text) for index, text in enumerate(texts)]).mean())
    return [*scores, np.mean(Factual()(texts, facts=[prompt.metadata["facts"] for prompt in prompts]))]


@pytest.mark.parametrize("row", TABLE)
def test_the_table_of_traps(row, test_split):
    expected, answers = TABLE[row]
    assert figures(test_split, answers(test_split.prompts)) == pytest.approx(expected, abs=6e-4)


def test_only_the_tasks_own_reward_ranks_the_reference_alone_at_the_top(test_split):
    """Must fail: each measure by itself is reached by a text that is no summary."""
    rows = {name: figures(test_split, answers(test_split.prompts)) for name, (_, answers) in TABLE.items()}
    fooled = [[name for name in rows if name != "reference" and rows[name][column] > 0.999] for column in range(6)]
    assert fooled == [
        ["copy", "shuffled", "last first"],
        ["shuffled", "last first"],
        [],
        [],
        [],
        ["copy", "last first"],
    ]


# The optimum


def test_the_optimum_is_reached_by_the_reference_alone():
    mdp = TextMDP(fact_summ(facts=2, marked=1, names=2, num_prompts=8))
    words = [word for word in mdp.task.vocabulary if word != "="]
    for index, prompt in enumerate(mdp.prompts[:2]):
        texts = [" ".join(text) for length in range(1, 4) for text in itertools.product(words, repeat=length)]
        returns = mdp.returns([mdp.written(index, text) for text in texts])
        best = {texts[row].upper() for row in np.flatnonzero(returns == returns.max())}
        assert returns.max() == 1
        assert best == {prompt.references[0]}  # up to capitals, which ROUGE does not see
    assert mdp.optimal_return() == 1


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_oracle_reaches_it_on_every_prompt(split):
    mdp = TextMDP(fact_summ(), split=split)
    oracle = [mdp.oracle_completion(index) for index in range(len(mdp.prompts))]
    assert (mdp.returns(oracle) == 1).all()
    assert {completion.stop_reason for completion in oracle} == {"eos"}


def test_going_on_after_the_summary_costs(test_split):
    prompt = test_split.prompts[0]
    longer = test_split.written(0, f"{prompt.references[0]} {prompt.references[0].split()[0]}")
    assert test_split.returns([longer])[0] < 0.95


def test_the_hack_falls_to_recall_only(test_split):
    assert RUNG.hack.answer is copy_document
    assert RUNG.normalised(RUNG.hack.robust_score) < 0.5 < RUNG.hack.naive_score == 1


# Facts as triples


def test_factual_reads_the_metadata(test_split):
    factual, facts = Factual(), [prompt.metadata["facts"] for prompt in test_split.prompts]
    references = [prompt.references[0] for prompt in test_split.prompts]
    assert factual(references, facts=facts) == [1.0] * len(facts)
    assert Factual("contradiction")(references, facts=facts) == [0.0] * len(facts)
    swapped = [
        say([(one[0], one[1], two[2]), (two[0], two[1], one[2])]) for one, two in facts
    ]  # must fail: wrong places
    assert factual(swapped, facts=facts) == [0.0] * len(facts)
    assert Factual("contradiction")(swapped, facts=facts) == [1.0] * len(facts)


def test_factual_is_its_reward_by_name():
    env = gym.make("textgen_env/FactSumm-v0", reward="factual")
    _, info = env.reset(seed=0)
    mdp = env.unwrapped.mdp
    for token in mdp.oracle_completion(info["prompt_index"]).token_ids:
        _, reward, terminated, _, _ = env.step(token)
    assert terminated
    assert reward == 1


# Prompts


@pytest.mark.parametrize("marks", ["capitals", "bullets"])
def test_the_summary_is_what_is_marked(marks):
    for prompt in fact_summ(facts=4, marked=3, marks=marks, num_prompts=40).prompts():
        document, facts = prompt.metadata["document_facts"], prompt.metadata["facts"]
        assert len(document) == 4
        assert len({word for fact in document for word in fact}) == 12
        assert facts == tuple(fact for fact in document if fact in facts)
        assert len(facts) == 3
        *words, separator = prompt.text.split()
        assert separator == "="
        if marks == "capitals":
            told = [word for word in words if word.isupper()]
            assert " ".join(words).lower() == say(document).lower()
        else:
            rows = [words[place : place + 4] for place in range(0, 16, 4)]
            assert [row[1:] for row in rows] == [list(fact) for fact in document]
            told = [word for bullet, *fact in rows if bullet == "*" for word in fact]
        assert prompt.references == (" ".join(told),)
        assert prompt.references[0].lower() == say(facts).lower()


def test_splits_are_by_content_and_draws_nest():
    small, large = fact_summ(num_prompts=100), fact_summ(num_prompts=300)
    for task in (small, large):
        for split, prompts in task.splits.items():
            assert {split_of(prompt.text) for prompt in prompts} == {split}
    texts = [{prompt.text for split in task.splits.values() for prompt in split} for task in (small, large)]
    assert [len(found) for found in texts] == [100, 300]
    assert texts[0] < texts[1]
    other = {prompt.text for split in fact_summ(num_prompts=100, seed=1).splits.values() for prompt in split}
    assert not other & texts[0]


def test_shape_of_the_game():
    mdp = TextMDP(fact_summ())
    assert (mdp.max_new_tokens, mdp.tokenizer.vocab_size, mdp.max_prompt_tokens) == (18, 51, 19)
    assert (mdp.reward.kind, mdp.reward.bounds) == ("terminal", (0.0, 1.0))
    assert len(fact_summ(names=10, num_prompts=20).vocabulary) <= 64
    env = gym.make("textgen_env/FactSumm-v0", task_kwargs={"facts": 3, "marked": 1, "num_prompts": 64})
    env.spec.to_json()
    assert env.unwrapped.mdp.max_new_tokens == 9


@pytest.mark.parametrize("marks", ["capitals", "bullets"])
def test_the_mask_allows_the_documents_words(marks):
    mdp = TextMDP(fact_summ(marks=marks, mask=True, num_prompts=64))
    for index, prompt in enumerate(mdp.prompts):
        allowed = mdp.tokenizer.hf.convert_ids_to_tokens(np.flatnonzero(mdp.action_mask(index, ())).tolist())
        assert set(allowed) == {*prompt.text.split(), "<eos>"} - {"*", "-", "="}
        assert set(prompt.references[0].split()) < set(allowed)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"names": 11}, "names must lie between 1 and 10, got 11"),
        ({"facts": 9}, "facts must lie between 1 and names=8, as no name occurs twice; got 9"),
        ({"marked": 7}, "marked must lie between 1 and facts=6, got 7"),
        ({"marked": 0}, "marked must lie between 1 and facts=6, got 0"),
        ({"marks": "capital"}, "marks must be one of capitals, bullets; got 'capital'"),
        ({"num_prompts": 0}, "num_prompts must lie between 1 and the 122903101440000 distinct prompts"),
        (
            {"facts": 1, "marked": 1, "names": 2, "num_prompts": 9},
            "between 1 and the 8 distinct prompts there are, got 9",
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        fact_summ(**kwargs)


def test_tasks_travel():
    task = fact_summ(mask=True, num_prompts=64)
    again = pickle.loads(pickle.dumps(task))
    assert again == task
    assert TextMDP(again).optimal_return() == 1
