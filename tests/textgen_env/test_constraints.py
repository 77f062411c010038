import importlib
import itertools
import pickle

import gymnasium as gym
import pytest

from reward_models import Instructions
from tests.textgen_env.test_reverse import returns
from textgen_env import TextMDP
from textgen_env.tasks import constraints
from textgen_env.tasks.constraints import BLANK, KINDS, RUNG, ConstraintsMet, meets

SMALL = {"words": 3, "shortest": 2, "longest": 3, "fewest": 1, "most": 3}


def all_prompts(**kwargs):
    task = constraints(**kwargs)
    return [prompt for split in task.splits.values() for prompt in split]


def texts_of(words, longest):
    return [" ".join(text) for length in range(longest + 1) for text in itertools.product(words, repeat=length)]


# The prompts


def test_prompts_are_all_demands_that_can_be_met():
    words, answers = "abc", [text.split() for text in texts_of("abc", 3)]
    expected = set()
    for count in (1, 2, 3):
        for kinds in itertools.combinations(KINDS, count):
            for values in itertools.product(*(("2", "3") if kind == "LEN" else words for kind in kinds)):
                named = [value for kind, value in zip(kinds, values, strict=True) if kind != "LEN"]
                demands = list(zip(kinds, values, strict=True))
                if len(set(named)) == len(named) and any(
                    len(answer) > 1 and all(meets(answer, *demand) for demand in demands) for answer in answers
                ):
                    expected.add(tuple(" ".join(demand) for demand in demands))
    prompts = all_prompts(**SMALL)
    assert {prompt.metadata["constraints"] for prompt in prompts} == expected
    assert len({prompt.text for prompt in prompts}) == len(prompts) == len(expected)


@pytest.mark.parametrize(("aligned", "text"), [(True, "LEN 3 ; ; END b ; ; ; ;"), (False, "LEN 3 END b")])
def test_how_demands_are_written(aligned, text):
    (prompt,) = (
        prompt
        for prompt in all_prompts(aligned=aligned, most=2)
        if prompt.metadata["constraints"] == ("LEN 3", "END b")
    )
    assert prompt.text == text


def test_defaults_are_the_ladders():
    task = constraints()
    sizes = [len(task.splits[split]) for split in ("train", "validation", "test")]
    assert sum(sizes) == 4096
    assert min(sizes) > 300
    assert not {prompt.text for prompt in task.prompts("test")} & {prompt.text for prompt in task.prompts()}
    counts = {len(prompt.metadata["constraints"]) for prompt in task.prompts("test")}
    assert counts == {2, 3, 4}
    mdp = TextMDP(task)
    assert (mdp.max_new_tokens, mdp.tokenizer.vocab_size, mdp.max_prompt_tokens) == (5, 17, 10)
    assert (mdp.reward.name, mdp.reward.kind, mdp.reward.bounds) == ("constraints_met", "terminal", (0.0, 1.0))


def test_large_instances_are_drawn_by_seed():
    def texts(**kwargs):
        return {prompt.text for prompt in all_prompts(words=26, longest=20, most=5, **kwargs)}

    assert len(texts()) == 4096
    assert texts(num_prompts=50) < texts(num_prompts=60)
    assert not texts(num_prompts=50) & texts(num_prompts=50, seed=1)


@pytest.mark.parametrize("by", [{"words": 8}, {"longest": 7}, {"most": 5}, {"aligned": False}, {"reward": "all"}])
def test_arguments_by_id(by):
    env = gym.make("textgen_env/Constraints-v0", task_kwargs={"num_prompts": 50, **by})
    env.spec.to_json()
    assert env.unwrapped.mdp.optimal_return() == 1.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fewest": 0}, "1 <= fewest <= most <= 5 must hold, got fewest=0 and most=4"),
        ({"fewest": 5}, "got fewest=5 and most=4"),
        ({"most": 6}, "got fewest=2 and most=6"),
        ({"words": 3}, "words must lie between most=4, all being distinct, and 26, got 3"),
        ({"words": 27}, "26, got 27"),
        ({"shortest": 1, "longest": 2}, "want a place., got shortest=1 and longest=2"),
        ({"shortest": 5}, "got shortest=5 and longest=4"),
        ({"answers": 0}, "answers must be at least 1, got 0"),
        ({"reward": "al"}, "reward must be one of fraction, all; got 'al'"),
        ({"num_prompts": 4173}, "the 4172 distinct prompts there are"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        constraints(**kwargs)
    with pytest.raises(ValueError, match="unknown kind 'CONTAIN'; did you mean 'CONTAINS'"):
        ConstraintsMet(kinds=("CONTAIN",))


# The reward and its optimum


@pytest.mark.parametrize("reward", ["fraction", "all"])
@pytest.mark.parametrize(
    "by", [{}, {"aligned": False}, {"words": 5, "shortest": 1, "longest": 6, "most": 5, "answers": 3}]
)
def test_every_reference_reaches_the_optimum(reward, by):
    mdp = TextMDP(constraints(reward=reward, num_prompts=300, **by))
    for index, prompt in enumerate(mdp.prompts):
        answers = [mdp.written(index, answer) for answer in prompt.references]
        assert mdp.returns(answers).tolist() == [1.0] * len(answers)
        assert all(answer.stop_reason == "eos" for answer in answers)
    assert mdp.optimal_return() == 1.0


def test_answers_are_drawn_from_all_that_are_right():
    (prompt,) = (
        prompt
        for prompt in all_prompts(**SMALL, answers=200)
        if prompt.metadata["constraints"] == ("START a", "CONTAINS b")
    )
    assert set(prompt.references) == {text for text in texts_of("abc", 3) if text[:1] == "a" and "b" in text}


@pytest.mark.parametrize("mode", ["fraction", "all"])
def test_instructions_agree_on_every_answer(mode):
    """In the prompt and in the column, over whatever the vocabulary can say."""
    prompts = all_prompts(words=2, shortest=1, longest=3, fewest=2, most=2)
    texts = texts_of(["a", "b", "2", "END", BLANK], 3)
    assert len(prompts) > 20
    blind = 0
    for prompt in prompts:
        demands = [prompt.metadata["constraints"]] * len(texts)
        own = ConstraintsMet(mode)(texts, demands)
        assert own == Instructions(mode=mode)(completions=texts, constraints=demands)
        assert own == Instructions(column=None, mode=mode)(completions=texts, prompts=[prompt.text] * len(texts))
        blind += own == ConstraintsMet(mode, kinds=KINDS[1:])(texts, demands)
    assert blind == sum("LEN" not in prompt.text for prompt in prompts)  # must fail: one that overlooks LEN differs


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("a c b", 1),
        ("a c c b", 3 / 4),  # LEN
        ("c b b", 1),
        ("b c", 2 / 4),  # LEN and END
        ("a d b", 2 / 4),  # CONTAINS and FORBID
        ("", 1 / 4),  # FORBID alone
        ("a ; c b", 1),
        ("; a c b", 1),
        ("a c b ;", 3 / 4),
    ],
)
def test_what_answers_earn(text, fraction):
    demands = ("LEN 3", "END b", "CONTAINS c", "FORBID d")
    assert ConstraintsMet()([text], [demands]) == [fraction]


def test_padding_is_no_word():
    mdp = TextMDP(constraints())
    index, wanted = next((i, p.references[0]) for i, p in enumerate(mdp.prompts) if "LEN 3" in p.text)
    first, *rest = mdp.tokenizer.encode_completion(mdp.prompts[index].text, wanted).tolist()
    assert returns(mdp, index, [(first, *rest), (0, first, *rest), (first, 0, *rest)]).tolist() == [1, 1, 1]


def test_tasks_travel():
    task = constraints(num_prompts=20)
    again = pickle.loads(pickle.dumps(task))
    assert again == task
    assert TextMDP(again).optimal_return() == 1


def test_the_docstring_shows_the_rung():
    page = importlib.import_module("textgen_env.tasks.constraints").__doc__
    for score in (RUNG.random, RUNG.supervised, RUNG.hack.robust_score):
        assert f" {score:.3f}".replace(" 0.", " .") in page
