import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from tests.textgen_env.test_reverse import completions, returns
from textgen_env import RewardError, TextMDP, train_tokenizer
from textgen_env.tasks import delayed_bit
from textgen_env.tasks.delayed_bit import RUNG, fillers_only, random_return

PAD, EOS, ZERO, ONE, GOOD, BAD, LETTER = range(7)
SMALL = {"steps": 3, "noise": 1, "letters": 1}


def make(**kwargs):
    """The whole task in one split."""
    task = delayed_bit(**kwargs)
    return TextMDP(replace(task, splits={"train": [prompt for split in task.splits.values() for prompt in split]}))


def answer_of(mdp, index):
    return mdp.prompts[index].metadata["bit_id"]


def test_prompts():
    mdp = make()
    assert len(mdp.prompts) == 512
    for prompt in mdp.prompts:
        *shown, separator = prompt.text.split()
        assert separator == "="
        (bit,) = [word for word in shown if word in ("0", "1")]
        assert len(shown) == 4
        assert prompt.references == (f"{bit} + + + + + + +",)
        assert mdp.tokenizer.decode([prompt.metadata["bit_id"]]) == bit
    places = [next(i for i, word in enumerate(prompt.text.split()) if word in "01") for prompt in mdp.prompts]
    assert np.bincount(places).tolist() == [128] * 4
    held_out = delayed_bit().splits
    assert min(len(held_out["validation"]), len(held_out["test"])) > 40


def test_shape_of_the_game():
    mdp = make()
    assert (mdp.max_new_tokens, mdp.tokenizer.vocab_size, mdp.max_prompt_tokens) == (8, 11, 5)
    assert (mdp.reward.name, mdp.reward.kind) == ("delayed_bit", "dense")
    assert mdp.reward.bounds == pytest.approx((-0.7, 1.7))
    small = gym.make("textgen_env/DelayedBit-v0", task_kwargs={"steps": 4})
    small.spec.to_json()
    assert small.unwrapped.mdp.max_new_tokens == 4


# What is declared, recomputed over every completion of a small instance


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_optimum_and_random_return(steps):
    mdp = make(**{**SMALL, "steps": steps})
    assert len(mdp.prompts) == 4
    for index in range(4):
        ids, probabilities = zip(*completions(mdp), strict=True)
        values = returns(mdp, index, ids)
        assert ids[values.argmax()] == mdp.oracle_completion(index).token_ids
        assert values.max() == pytest.approx(1 + 0.1 * (steps - 1))
        assert np.isclose(values, values.max()).sum() == 1  # nothing else reaches it
        assert values.min() == pytest.approx(-0.1 * (steps - 1))
        assert values @ probabilities == pytest.approx(random_return(letters=1), abs=1e-12)
    assert mdp.optimal_return() == pytest.approx(1 + 0.1 * (steps - 1))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda bit: [bit] + 7 * [GOOD], 1.7),
        (lambda bit: 8 * [GOOD], 0.7),  # farming fillers
        (lambda bit: [EOS], 0),
        (lambda bit: [bit, EOS], 1.0),
        (lambda bit: [ZERO] + 7 * [GOOD], 1.2),  # the best without reading the prompt
        (lambda bit: [bit] + 7 * [BAD], 0.3),
        (lambda bit: 8 * [bit], 1.0),
        (lambda bit: [LETTER] + 7 * [GOOD], 0.7),
        (lambda bit: [PAD, bit] + 6 * [GOOD], 0.6),  # the bit counts in the first place only
        (lambda bit: [bit, GOOD, BAD, GOOD, PAD, LETTER, ONE, EOS], 1.1),
    ],
)
def test_what_answers_earn(answer, expected):
    mdp = make()
    earned = [returns(mdp, index, [answer(answer_of(mdp, index))]) for index in range(len(mdp.prompts))]
    assert np.mean(earned) == pytest.approx(expected)


def test_farming_fools_the_reward_without_the_bit():
    mdp = make()
    farmed = [mdp.written(index, RUNG.hack.answer(prompt)) for index, prompt in enumerate(mdp.prompts)]
    best = [mdp.oracle_completion(index) for index in range(len(mdp.prompts))]
    paid = [fillers_only([completion.text for completion in completions]) for completions in (farmed, best)]
    assert paid[0] == pytest.approx([0.8] * 512)
    assert paid[1] == pytest.approx([0.7] * 512)  # the cheat beats the right answer
    assert mdp.returns(farmed) == pytest.approx([0.7] * 512)
    assert fillers_only(["+ - - a 0", ""]) == pytest.approx([-0.1, 0])


@pytest.mark.parametrize(
    ("rest", "paid"),
    [([GOOD, BAD, LETTER], [0, 0.1, -0.1, 1.0]), ([GOOD, BAD, GOOD], [0, 0.1, -0.1, 1.1]), ([EOS], [0, 1.0])],
)
@pytest.mark.parametrize("right", [True, False])
def test_paid_as_it_comes(rest, paid, right):
    env = gym.make("textgen_env/DelayedBit-v0", task_kwargs={"steps": 4})
    _, info = env.reset(seed=0)
    bit = answer_of(env.unwrapped.mdp, info["prompt_index"])
    first = bit if right else ZERO + ONE - bit
    steps = [env.step(token) for token in (first, *rest)]
    assert [step[1] for step in steps] == pytest.approx([*paid[:-1], paid[-1] - (not right)])
    assert [step[2] for step in steps] == [False] * len(rest) + [True]


def test_a_raised_cap_keeps_the_optimum():
    task = delayed_bit()
    mdp = TextMDP(task, max_new_tokens=20)
    assert mdp.optimal_return() == pytest.approx(1.7)
    assert returns(mdp, 0, [(answer_of(mdp, 0), *19 * [GOOD])])[0] == pytest.approx(1.7)
    with pytest.raises(ValueError, match="max_new_tokens=7 leaves no room for it"):
        TextMDP(task, max_new_tokens=7).optimal_return()


def test_another_tokenizer_is_an_error():
    task = delayed_bit()
    mdp = TextMDP(task, tokenizer=train_tokenizer(task.texts(), 300))
    with pytest.raises(RewardError, match=r"outside the game's own vocabulary of 11: .* play it without tokenizer="):
        mdp.score([mdp.complete(0, (200,), None)])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"noise": -1}, "noise must be at least 0, got -1"),
        ({"letters": 0}, "letters must lie between 1 and 26, got 0"),
        ({"num_prompts": 513}, "between 1 and the 512 distinct prompts there are, got 513"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        delayed_bit(**kwargs)


def test_tasks_travel():
    task = delayed_bit()
    again = pickle.loads(pickle.dumps(task))
    assert again == task
    assert TextMDP(again).optimal_return() == pytest.approx(1.7)
