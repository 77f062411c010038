import pickle

import gymnasium as gym
import numpy as np
import pytest

from tests.textgen_env.test_reverse import completions, returns
from textgen_env import RewardError, TextMDP, train_tokenizer
from textgen_env.tasks import add
from textgen_env.tasks.add import RUNG, random_return, right_of_written
from textgen_env.tasks.dataset import split_of

PAD, EOS, ZERO, ONE = range(4)


def everything(task):
    return [prompt for split in task.splits.values() for prompt in split]


def lowest_first(digits, base):
    return int("".join(reversed(digits)), base)


def highest_first(digits, base):
    return int("".join(digits), base)


def sums_hold(prompts, base, read):
    def holds(prompt):
        left, right = prompt.text.removesuffix("=").split("+")
        total = read(left.split(), base) + read(right.split(), base)
        return read(prompt.references[0].split(), base) == total

    return all(map(holds, prompts))


# The prompts


@pytest.mark.parametrize(("places", "base"), [(1, 10), (2, 10), (3, 3), (1, 16), (2, 36)])
def test_answers_are_sums(places, base):
    prompts = everything(add(places=places, base=base))
    assert len(prompts) == min(4096, base ** (2 * places))
    assert sums_hold(prompts, base, lowest_first)
    assert not sums_hold(prompts, base, highest_first)  # must fail: the carry goes the other way
    for prompt in prompts:
        assert len(prompt.text.split()) == 2 * places + 2
        written = prompt.references[0].split()
        assert written == ["0"] or written[-1] != "0"


def test_a_fifth_of_the_pairs_is_held_out_by_content():
    task = add()
    sizes = {split: len(prompts) for split, prompts in task.splits.items()}
    assert sum(sizes.values()) == 4096
    assert sizes["validation"] + sizes["test"] == pytest.approx(0.2 * 4096, rel=0.05)
    for split, prompts in task.splits.items():
        assert {split_of(prompt.text) for prompt in prompts} == {split}
    held_out = {prompt.text for prompt in task.prompts("test")}
    drawn_otherwise = add(num_prompts=5000, seed=3).prompts()
    assert not held_out & {prompt.text for prompt in drawn_otherwise}  # whatever is drawn: never trained on


def test_shape_of_the_game():
    mdp = TextMDP(add())
    assert (mdp.max_new_tokens, mdp.tokenizer.vocab_size, mdp.max_prompt_tokens) == (4, 14, 6)
    assert (mdp.reward.name, mdp.reward.kind, mdp.reward.bounds) == ("exact", "terminal", (0.0, 1.0))
    env = gym.make("textgen_env/Add-v0", task_kwargs={"places": 3, "reward": "fraction"})
    env.spec.to_json()
    assert env.unwrapped.mdp.max_new_tokens == 5
    assert env.unwrapped.mdp.optimal_return() == 1.0


# What is declared, recomputed over every completion of a small instance


@pytest.mark.parametrize("reward", ["exact", "fraction", "dense"])
@pytest.mark.parametrize(("places", "base"), [(1, 2), (1, 3), (2, 2)])
def test_optimum_and_random_return(places, base, reward):
    task = add(places=places, base=base, reward=reward)
    expected = []
    for split in [split for split, prompts in task.splits.items() if prompts]:
        mdp = TextMDP(task, split=split)
        ids, probabilities = zip(*completions(mdp), strict=True)
        for index in range(len(mdp.prompts)):
            values = returns(mdp, index, ids)
            assert values.max() == pytest.approx(1)
            assert np.isclose(values, 1).sum() == 1  # the oracle is the only argmax
            assert ids[values.argmax()] == mdp.oracle_completion(index).token_ids
            assert values.min() == 0
            expected.append(values @ probabilities)
    assert len(expected) == base ** (2 * places)
    assert np.mean(expected) == pytest.approx(random_return(places, base, reward), abs=1e-12)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_oracle_is_right_on_every_prompt(split):
    mdp = TextMDP(add(), split=split)
    assert mdp.returns([mdp.oracle_completion(index) for index in range(len(mdp.prompts))]).min() == 1


@pytest.mark.parametrize(
    ("ids", "exact", "fraction"),
    [
        ((ZERO, ONE, EOS), 1, 1),  # 1 + 1 = 10, the lowest digit first
        ((ZERO, ONE, PAD), 0, 2 / 3),
        ((ZERO, EOS), 0, 1 / 3),
        ((ONE, ZERO, EOS), 0, 1 / 3),
        ((EOS,), 0, 0),
    ],
)
def test_what_answers_earn(ids, exact, fraction):
    for reward, expected in (("exact", exact), ("fraction", fraction), ("dense", fraction)):
        task = add(places=1, base=2, reward=reward)
        (split,) = [split for split, prompts in task.splits.items() if "1 + 1 =" in {p.text for p in prompts}]
        mdp = TextMDP(task, split=split)
        index = [prompt.text for prompt in mdp.prompts].index("1 + 1 =")
        assert returns(mdp, index, [ids])[0] == pytest.approx(expected)


# The hack


def test_the_lowest_digit_alone_fools_the_naive_reward():
    mdp = TextMDP(add(), split="test")
    answers = [mdp.written(index, RUNG.hack.answer(prompt)) for index, prompt in enumerate(mdp.prompts)]
    texts, references = [answer.text for answer in answers], [list(prompt.references) for prompt in mdp.prompts]
    assert set(right_of_written(texts, references)) == {1.0}
    one_digit = [len(prompt.references[0].split()) == 1 for prompt in mdp.prompts]
    assert mdp.returns(answers).tolist() == one_digit  # exactly what it is worth


def test_the_naive_reward_reads_places():
    assert right_of_written(["6 1 1", "6 1", "1 6", "", "6 1 1 1"], [["6 1 1"]] * 5) == [1, 1, 0, 0, 0.75]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"places": 0}, "places must be at least 1, got 0"),
        ({"base": 1}, "base must lie between 2 and 36, got 1"),
        ({"base": 37}, "base must lie between 2 and 36, got 37"),
        ({"reward": "exactly"}, "reward must be one of fraction, exact, dense; got 'exactly'"),
        ({"num_prompts": 10_001}, "between 1 and the 10000 distinct prompts there are, got 10001"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        add(**kwargs)


def test_another_tokenizer_is_an_error():
    task = add()
    mdp = TextMDP(task, tokenizer=train_tokenizer(task.texts(), 300))
    with pytest.raises(RewardError, match=r"outside the game's own vocabulary of 14: .* play it without tokenizer="):
        mdp.score([mdp.complete(0, (200,), "length")])


def test_tasks_travel():
    task = add()
    assert pickle.loads(pickle.dumps(task)) == task
