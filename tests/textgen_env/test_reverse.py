import pickle
from itertools import product

import gymnasium as gym
import numpy as np
import pytest

from textgen_env import RewardError, TextMDP, train_tokenizer
from textgen_env.tasks import reverse
from textgen_env.tasks.reverse import RUNG, random_return, unordered_overlap

SMALL = {"length": 2, "symbols": 2}
PAD, EOS, A, B, SEPARATOR = range(5)


def completions(mdp, allowed=None):
    """Every completion there is, with its probability under a uniformly random policy."""
    allowed = range(mdp.tokenizer.vocab_size) if allowed is None else allowed
    found = []
    for ids in product(allowed, repeat=mdp.max_new_tokens):
        ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
        found.append((ids, len(allowed) ** -len(ids)))
    return list(dict.fromkeys(found))


def returns(mdp, index, all_ids):
    return mdp.returns([mdp.complete(index, ids, "eos" if ids[-1] == EOS else "length") for ids in all_ids])


# The prompts


@pytest.mark.parametrize(
    ("mode", "answers"),
    [
        ("reverse", ["a a", "b a", "a b", "b b"]),
        ("copy", ["a a", "a b", "b a", "b b"]),
        ("sort", ["a a", "a b", "a b", "b b"]),
    ],
)
def test_prompts_and_their_answers(mode, answers):
    task = reverse(**SMALL, mode=mode)
    prompts = {prompt.text: prompt for split in task.splits.values() for prompt in split}
    assert sorted(prompts) == ["a a =", "a b =", "b a =", "b b ="]
    assert [prompts[text].references for text in sorted(prompts)] == [(answer,) for answer in answers]
    ids = {"a": A, "b": B}
    for prompt in prompts.values():
        assert prompt.metadata["target_ids"] == (*(ids[word] for word in prompt.references[0].split()), EOS)


def test_defaults_are_the_ladders():
    task = reverse()
    sizes = [len(task.splits[split]) for split in ("train", "validation", "test")]
    assert sum(sizes) == 8**3
    assert min(sizes) > 40
    mdp = TextMDP(task)
    assert (mdp.max_new_tokens, mdp.tokenizer.vocab_size, mdp.max_prompt_tokens) == (4, 11, 4)
    assert (mdp.reward.name, mdp.reward.kind, mdp.reward.bounds) == ("fraction", "terminal", (0.0, 1.0))


def test_large_instances_are_drawn_by_seed():
    def texts(**kwargs):
        task = reverse(length=14, symbols=52, **kwargs)  # more prompts than fit 64 bits
        return {prompt.text for split in task.splits.values() for prompt in split}

    assert len(texts()) == 4096
    assert texts(num_prompts=50) == texts(num_prompts=50)
    assert texts(num_prompts=50) < texts(num_prompts=60)
    assert not texts(num_prompts=50) & texts(num_prompts=50, seed=1)


@pytest.mark.parametrize("by", [{"length": 4}, {"symbols": 5}, {"mode": "sort"}, {"reward": "exact"}, {"mask": True}])
def test_arguments_by_id(by):
    env = gym.make("textgen_env/Reverse-v0", task_kwargs=by)
    assert by.items() <= env.spec.kwargs["task_kwargs"].items()
    env.spec.to_json()
    assert env.unwrapped.mdp.optimal_return() == 1.0


@pytest.mark.parametrize(
    ("id", "name", "reward"),
    [
        ("Reverse", "reverse", "fraction"),
        ("ReverseDense", "reverse", "dense"),
        ("Copy", "copy", "fraction"),
        ("Sort", "sort", "fraction"),
    ],
)
def test_variants_by_id(id, name, reward):
    """An argument changes what it names and nothing else: a longer Copy is still a copy."""
    for kwargs, cap in (({}, 4), ({"length": 5}, 6)):
        mdp = gym.make(f"textgen_env/{id}-v0", task_kwargs=kwargs).unwrapped.mdp
        assert (mdp.task.name, mdp.reward.name, mdp.max_new_tokens) == (name, reward, cap)
        assert mdp.optimal_return() == pytest.approx(1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"symbols": 1}, "symbols must lie between 2 and 52, got 1"),
        ({"symbols": 53}, "symbols must lie between 2 and 52, got 53"),
        ({"mode": "revers"}, "mode must be one of reverse, copy, sort; got 'revers'"),
        ({"reward": "rouge_l"}, "reward must be one of fraction, exact, dense; got 'rouge_l'"),
        ({"num_prompts": 0}, "between 1 and the 512 distinct prompts there are, got 0"),
        ({"num_prompts": 513}, "between 1 and the 512 distinct prompts there are, got 513"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        reverse(**kwargs)


# What is declared, recomputed over every completion of a small instance


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("reward", ["fraction", "exact", "dense"])
@pytest.mark.parametrize("mode", ["reverse", "copy", "sort"])
def test_optimum_and_random_return(mode, reward, mask):
    mdp = TextMDP(reverse(**SMALL, mode=mode, reward=reward, mask=mask))
    expected = []
    for index in range(len(mdp.prompts)):
        allowed = np.flatnonzero(mdp.action_mask(index, ())).tolist()
        ids, probabilities = zip(*completions(mdp, allowed), strict=True)
        assert sum(probabilities) == pytest.approx(1)
        values = returns(mdp, index, ids)
        assert values.max() == 1
        assert (values == 1).sum() == 1  # the oracle is the only argmax
        assert ids[values.argmax()] == mdp.oracle_completion(index).token_ids
        assert values.min() == 0
        expected.append(values @ probabilities)
    assert mdp.optimal_return() == 1
    assert np.mean(expected) == pytest.approx(random_return(**SMALL, reward=reward, mask=mask), abs=1e-12)


def test_hacks_score_less():
    mdp = TextMDP(reverse(num_prompts=512))
    everyone = [TextMDP(mdp.task, split=split) for split in mdp.task.splits]

    def earned(*ids):
        values = [returns(one, index, [ids]) for one in everyone for index in range(len(one.prompts))]
        return float(np.mean(values))

    assert earned(EOS) == 0
    assert earned(A, A, A, A) == pytest.approx(3 / 8 / 4)
    assert earned(A, A, A, EOS) == pytest.approx((3 / 8 + 1) / 4)
    assert earned(A, EOS) == pytest.approx(1 / 8 / 4)  # an EOS out of its place is worth nothing


def test_one_symbol_for_ever_fools_the_reward_without_order_and_end():
    mdp = TextMDP(reverse(), split="test")
    answers = [mdp.written(index, RUNG.hack.answer(prompt)) for index, prompt in enumerate(mdp.prompts)]
    assert {answer.stop_reason for answer in answers} == {"length"}
    references = [list(prompt.references) for prompt in mdp.prompts]
    assert set(unordered_overlap([answer.text for answer in answers], references)) == {1.0}
    # its last symbol is always right, the two before it one time in eight
    assert mdp.returns(answers).mean() == pytest.approx((1 + 2 / 8) / 4, abs=0.03)
    assert unordered_overlap(["b a", "a b c c", "", "c"], [["a b"]] * 4) == [1, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("ids", "fraction"),
    [
        ((B, A, EOS), 1),
        ((B, A, PAD), 2 / 3),
        ((B, A, SEPARATOR), 2 / 3),
        ((B, EOS), 1 / 3),
        ((PAD, B, A), 0),  # a padding token leaves no trace in the text "b a", but it takes a position
        ((B, PAD, A), 1 / 3),
    ],
)
@pytest.mark.parametrize("reward", ["fraction", "exact", "dense"])
def test_positions_count_in_tokens(ids, fraction, reward):
    mdp = TextMDP(reverse(**SMALL, reward=reward, mode="copy"))
    index = [prompt.text for prompt in mdp.prompts].index("b a =")
    assert returns(mdp, index, [ids])[0] == pytest.approx(float(fraction == 1) if reward == "exact" else fraction)


def test_dense_pays_at_once():
    env = gym.make("textgen_env/Reverse-v0", task_kwargs={"reward": "dense"})
    _, info = env.reset(seed=0)
    first, _, third, eos = env.unwrapped.mdp.prompts[info["prompt_index"]].metadata["target_ids"]
    assert [env.step(token)[1] for token in (first, PAD, third, eos)] == [0.25, 0, 0.25, 0.25]


def test_a_raised_cap_keeps_the_optimum():
    mdp = TextMDP(reverse(), max_new_tokens=9)
    assert mdp.optimal_return() == 1
    ids = mdp.oracle_completion(0).token_ids
    assert returns(mdp, 0, [(*ids[:-1], A, A, EOS)])[0] == 0.75


def test_a_lower_cap_puts_it_out_of_reach():
    assert TextMDP(reverse(), max_new_tokens=3).optimal_return() == 0.75  # no room for the EOS
    with pytest.raises(ValueError, match="max_new_tokens=2 leaves no room for it"):
        TextMDP(reverse(), max_new_tokens=2).optimal_return()


def test_another_tokenizer_is_an_error():
    task = reverse()
    mdp = TextMDP(task, tokenizer=train_tokenizer(task.texts(), 300))
    with pytest.raises(RewardError, match=r"outside the game's own vocabulary of 11: .* play it without tokenizer="):
        mdp.score([mdp.complete(0, (200,), "length")])


def test_tasks_travel():
    task = reverse(mask=True, reward="dense")
    again = pickle.loads(pickle.dumps(task))
    assert again == task
    assert TextMDP(again).optimal_return() == 1
