"""What all tasks promise that people know from elsewhere; what is special about one stands in its own file."""

import pickle
from functools import cache

import pytest

from textgen_env import TextMDP
from textgen_env.registry import BUILT_IN
from textgen_env.tasks import resolve_task
from textgen_env.tasks.dataset import split_of
from textgen_env.tasks.games import reference_oracle
from textgen_env.tasks.ladder import RECOGNISABLE

SPLITS = ("train", "validation", "test")


def make(name, **task_kwargs):
    return resolve_task(BUILT_IN[f"textgen_env/{name}-v0"]["task"], **task_kwargs)


def size_of(name):
    return "num_articles" if name == "NewsSummary" else "num_prompts"


@cache
def held_out(name):
    return TextMDP(make(name), split="test")


@pytest.mark.parametrize("name", RECOGNISABLE)
def test_the_oracle_reaches_the_optimum_on_every_prompt(name):
    mdp, optimum = held_out(name), RECOGNISABLE[name].optimum
    oracle = [mdp.oracle_completion(index) for index in range(len(mdp.prompts))]
    assert {completion.stop_reason for completion in oracle} == {"eos"}
    assert [completion.text for completion in oracle] == [mdp.task.oracle(prompt) for prompt in mdp.prompts]
    returns = mdp.returns(oracle)
    assert returns.mean() == pytest.approx(optimum, rel=1e-6) == mdp.optimal_return()
    if mdp.task.oracle is reference_oracle:
        assert (returns == 1).all()


@pytest.mark.parametrize("name", RECOGNISABLE)
def test_splits_are_by_content(name):
    task = make(name)
    texts = {split: {prompt.text for prompt in task.prompts(split)} for split in SPLITS}
    assert sum(map(len, texts.values())) == len(set().union(*texts.values()))
    for split, found in texts.items():
        assert all(split_of(text) == split for text in found)
        assert len(found) > 100


@pytest.mark.parametrize("name", RECOGNISABLE)
def test_a_smaller_draw_is_part_of_a_larger_one(name):
    def drawn(size, seed):
        task = make(name, **{size_of(name): size, "seed": seed})
        return {(prompt.text, prompt.references) for split in task.splits.values() for prompt in split}

    small, large, other = drawn(100, 3), drawn(300, 3), drawn(100, 4)
    assert len(small) == 100
    assert small < large
    assert len(small & other) < 50


@pytest.mark.parametrize("name", RECOGNISABLE)
def test_sizes_out_of_range(name):
    size = size_of(name)
    with pytest.raises(ValueError, match=f"{size} must be at least 1, got 0"):
        make(name, **{size: 0})


@pytest.mark.parametrize("name", RECOGNISABLE)
def test_tasks_travel(name):
    task = make(name, **{size_of(name): 100})
    again = pickle.loads(pickle.dumps(task))
    assert (again.splits, again.oracle, again.max_new_tokens) == (task.splits, task.oracle, task.max_new_tokens)
    assert TextMDP(again).optimal_return() == TextMDP(task).optimal_return()


@pytest.mark.parametrize("name", RECOGNISABLE)
def test_the_hack_loses_under_the_tasks_own_reward(name):
    rung, mdp = RECOGNISABLE[name], held_out(name)
    answers = [mdp.written(index, rung.hack.answer(prompt)) for index, prompt in enumerate(mdp.prompts)]
    naive = TextMDP(mdp.task, rung.hack.naive, mdp.tokenizer, max_new_tokens=mdp.max_new_tokens, split="test")
    assert mdp.returns(answers).mean() < 0.6 * rung.optimum < naive.returns(answers).mean()
