"""The one shape behind reward plug-ins: what a function is given, and what it may give back."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from textgen_env import (
    Reward,
    RewardError,
    dense,
    register_reward,
    resolve_reward,
    reward_names,
)
from textgen_env import reward_registry as registry_module
from textgen_env.types import Completion, Prompt, StopReason


def completion(
    text: str,
    tokens: int = 3,
    *,
    prompt: str = "Say:",
    references: tuple[str, ...] = (),
    stop_reason: StopReason | None = "eos",
    **metadata: Any,
) -> Completion:
    return Completion(Prompt(prompt, references, metadata), text, tuple(range(5, 5 + tokens)), stop_reason)


BATCH = [completion("a", 1), completion("b c", 2), completion("", 4, stop_reason="length")]


def word_count(completions: list[str]) -> list[float]:
    return [float(len(text.split())) for text in completions]


class Brevity:
    """A plug-in with state."""

    bounds = (-10, 0)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [-self.scale * len(text) for text in completions]


@dense
def each_token_its_id(completion_ids: list[list[int]]) -> list[list[float]]:
    return [[float(token) for token in ids] for ids in completion_ids]


def returning(*values: Any, whole: Any = None) -> Reward:
    """A reward that answers this, whatever it is asked."""
    answer = list(values) if whole is None else whole
    return Reward(lambda completions: answer, name="fixed")


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that a test registers are gone after it."""
    monkeypatch.setattr(registry_module, "_registry", dict(registry_module._registry))


# --- what a function is given -----------------------------------------------------------------------------


def test_a_function_gets_what_it_names_by_keyword_once_a_batch() -> None:
    calls: list[dict[str, Any]] = []

    def spy(stop_reasons: Any, prompts: Any, references: Any, completion_ids: Any, completions: Any) -> list[int]:
        calls.append(
            {"r": references, "i": completion_ids, "s": stop_reasons, "p": prompts, "c": completions},
        )
        return [0, 0]

    batch = [completion("x", 2, references=("r1", "r2")), completion("y", prompt="Ask:", stop_reason=None)]
    Reward(spy).score(batch)
    assert calls == [
        {
            "p": ["Say:", "Ask:"],
            "c": ["x", "y"],
            "i": [[5, 6], [5, 6, 7]],
            "r": [["r1", "r2"], []],
            "s": ["eos", None],
        }
    ]
    assert all(type(token) is int for token in calls[0]["i"][0])


def test_kwargs_gets_everything_and_metadata_columns_are_united() -> None:
    seen: dict[str, Any] = {}

    def spy(**everything: Any) -> list[float]:
        seen.update(everything)
        return [0.0] * len(everything["completions"])

    Reward(spy).score([completion("x", topic="tea", level=1), completion("y", level=2, answer="42")])
    assert list(seen) == [
        *("prompts", "completions", "completion_ids", "references", "stop_reasons"),
        *("topic", "level", "answer"),
    ]
    assert seen["topic"] == ["tea", None]
    assert seen["level"] == [1, 2]
    assert seen["answer"] == [None, "42"]


def test_rewards_written_for_trl_run_unchanged() -> None:
    def reward_len(completions: list[str], **kwargs: Any) -> list[float]:
        return [-abs(20 - len(text)) for text in completions]

    def reward_answer(
        prompts: list[str], completions: list[str], ground_truth: list[str], **kwargs: Any
    ) -> list[float]:
        return [1.0 if truth in text else 0.0 for text, truth in zip(completions, ground_truth, strict=True)]

    batch = [completion("it is 4", ground_truth="4"), completion("it is 5", ground_truth="6")]
    assert resolve_reward(reward_len).score(batch).totals.tolist() == [-13.0, -13.0]
    assert resolve_reward(reward_answer).score(batch).totals.tolist() == [1.0, 0.0]


def test_a_parameter_with_a_default_takes_a_column_only_where_there_is_one() -> None:
    def scaled(completions: list[str], scale: Sequence[float] | None = None) -> list[float]:
        return [1.0] * len(completions) if scale is None else [float(value) for value in scale]

    assert Reward(scaled).score([completion("x")]).totals.tolist() == [1.0]
    assert Reward(scaled).score([completion("x", scale=7)]).totals.tolist() == [7.0]


def test_an_argument_there_is_none_of_names_the_column_meant() -> None:
    def graded(completions: list[str], ground_truht: list[str]) -> list[float]:
        raise AssertionError("never called")

    with pytest.raises(
        RewardError, match=r"'graded' wants .*'ground_truht'.*ground_truth.*did you mean 'ground_truth'"
    ):
        Reward(graded).score([completion("x", ground_truth="y")])
    with pytest.raises(RewardError, match=r"'lambda' wants .*'c',.*columns here: none.*completions"):
        Reward(lambda c: [0]).score([completion("x")])


def test_a_column_named_like_a_standard_argument_is_refused_where_it_would_be_ambiguous() -> None:
    batch = [Completion(Prompt("Say:", metadata={"references": "column"}), "x", (5,), "eos")]
    with pytest.raises(RewardError, match=r"'references' as a standard argument.*rename the column"):
        Reward(lambda references: [0]).score(batch)
    assert Reward(word_count).score(batch).totals.tolist() == [1.0]


def test_what_a_partial_has_bound_stays_bound() -> None:
    def scaled(completions: list[str], scale: float, **_: Any) -> list[float]:
        return [scale * len(text) for text in completions]

    batch = [completion("ab", scale=100.0)]
    assert Reward(functools.partial(scaled, scale=3.0)).score(batch).totals.tolist() == [6.0]
    # Through **kwargs as well: the column must not slip in by that way.
    everything = functools.partial(lambda **kwargs: [kwargs["scale"]], scale=3.0)
    assert Reward(everything).score(batch).totals.tolist() == [3.0]


def test_a_completion_knows_its_prefixes_but_does_not_carry_the_tokenizer_around() -> None:
    whole = Completion(Prompt("Say:"), "5 6 7", (5, 6, 7), "eos", lambda ids: " ".join(map(str, ids)))
    assert whole.prefix(2) == Completion(Prompt("Say:"), "5 6", (5, 6), None)
    assert (whole.prefix(2).prefix(0).text, whole.prefix(0).token_ids) == ("", ())
    for length in (-1, 3):
        with pytest.raises(ValueError, match=f"3 tokens has no growing prefix of {length}"):
            whole.prefix(length)
    for twin in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert twin == whole
        with pytest.raises(ValueError, match="made without decode="):
            twin.prefix(1)


def test_a_plug_in_cannot_change_the_completions() -> None:
    def vandal(completions: list[str], completion_ids: list[list[int]], references: list[list[str]]) -> list[int]:
        completions.clear()
        completion_ids[0].clear()
        references[0].append("mine")
        return [1, 1, 1]

    before = copy.deepcopy(BATCH)
    Reward(vandal).score(BATCH)
    assert before == BATCH


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completions, /: [0], r"positional-only parameters \(completions\)"),
        (lambda: [0], "names no arguments"),
        (lambda *args: [0], "names no arguments"),
        (dict, "cannot read which arguments"),
    ],
)
def test_functions_that_cannot_be_called_by_keyword_are_refused_at_once(function: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        Reward(function)


# --- what a function gives back ---------------------------------------------------------------------------


def test_a_float_stands_on_the_last_token() -> None:
    scores = Reward(word_count).score(BATCH)
    assert [rewards.tolist() for rewards in scores.token_rewards] == [[1.0], [0.0, 2.0], [0.0] * 4]
    assert scores.totals.tolist() == [1.0, 2.0, 0.0]
    assert list(scores.components) == ["word_count"]
    assert scores.info(1) == {"word_count": {"raw": 2.0, "normalised": 2.0, "weighted": 2.0}}


def test_an_array_pays_each_token() -> None:
    scores = returning([0.5], np.array([1.0, -2.0]), torch.tensor([1, 2, 3, 4.5])).score(BATCH)
    assert [rewards.tolist() for rewards in scores.token_rewards] == [[0.5], [1.0, -2.0], [1.0, 2.0, 3.0, 4.5]]
    assert scores.components["fixed"]["raw"].tolist() == [0.5, -1.0, 10.5]


@pytest.mark.parametrize(
    "whole",
    [
        [1, 0.0, True],
        (1.0, False, Fraction(1)),
        np.array([1, 0, 1]),
        np.array([1, 0, 1], dtype=np.float16),
        np.array([True, False, True]),
        [np.float32(1), np.int64(0), np.array(1.0)],
        torch.tensor([1, 0, 1], dtype=torch.bfloat16),
        torch.tensor([1.0, 0.0, 1.0], requires_grad=True),
        [torch.tensor(1.0, requires_grad=True), torch.tensor(False), np.bool_(True)],
        [[torch.tensor(1.0)], [torch.tensor(1.0), -1], np.array([1, 0, 0, False])],
    ],
)
def test_numbers_of_every_kind_are_understood(whole: Any) -> None:
    scores = returning(whole=whole).score(BATCH)
    assert scores.totals.tolist() == [1.0, 0.0, 1.0]
    assert all(rewards.dtype == np.float64 for rewards in scores.token_rewards)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 0), r"returned 2 values for 3 completions.*The first completion: 'a'"),
        ((0, "0.5", 0), r"returned str '0\.5' for completion 1 of 3: 'b c' \(prompt: 'Say:'\)"),
        ((0, {"score": 1}, 0), r"returned dict .*completion 1 of 3: 'b c'"),
        ((0, 1j, 0), r"returned complex .*'b c'"),
        ((0, float("nan"), 0), r"returned .*not finite, nan, for completion 1 of 3: 'b c'"),
        ((0, 10**400, 0), r"returned .*not finite.*'b c'"),
        ((0, [1.0, -np.inf], 0), r"returned .*not finite.*'b c'"),
        ((0, [1.0], 0), r"returned 1 per-token rewards for 2 tokens for completion 1 of 3: 'b c'"),
        ((0, [1.0, "x"], 0), r"returned list .*'b c'"),
        ((0, [1.0, None], 0), r"returned list .*'b c'"),
        ((0, [[1.0], [1.0, 2.0]], 0), r"returned list .*'b c'"),
        ((0, np.ones((2, 1)), 0), r"returned list .*'b c'"),
        ((0, 0, None), r"returned None \(does not apply\).*completion 2 of 3: ''.*Return a number"),
    ],
)
def test_answers_that_are_no_reward_name_the_reward_and_the_text(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RewardError, match=r"^reward 'fixed' " + message):
        returning(*values).score(BATCH)


@pytest.mark.parametrize(
    "whole", [0.5, np.array(0.5), "abc", {"a": 1, "b": 2, "c": 3}, {1.0, 2.0, 3.0}, (x for x in (1, 2, 3))]
)
def test_the_answer_is_a_list(whole: Any) -> None:
    with pytest.raises(RewardError, match=r"'fixed' returned .* for 3 completions: return a list"):
        returning(whole=whole).score(BATCH)


def test_a_function_that_forgot_to_return_is_told_so() -> None:
    def forgetful(completions: list[str]) -> None:
        pass

    with pytest.raises(RewardError, match="'forgetful' returned NoneType None for 3 completions"):
        Reward(forgetful).score(BATCH)  # type: ignore[arg-type]


async def awaited_word_count(completions: list[str]) -> list[float]:
    return await asyncio.sleep(0, word_count(completions))


class AsyncCall:
    async def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return await awaited_word_count(completions)


@pytest.mark.parametrize(
    "function", [awaited_word_count, AsyncCall(), functools.partial(awaited_word_count), AsyncCall().__call__]
)
def test_an_asynchronous_reward_is_awaited(function: Any) -> None:
    assert Reward(function).score(BATCH).totals.tolist() == [1.0, 2.0, 0.0]


def test_an_asynchronous_reward_works_inside_a_running_loop() -> None:
    async def notebook() -> list[float]:
        return Reward(awaited_word_count).score(BATCH).totals.tolist()

    assert asyncio.run(notebook()) == [1.0, 2.0, 0.0]


def test_asynchronous_batches_share_one_loop() -> None:
    """Must fail if every batch had a loop of its own: a client session would be closed under its owner's hands."""
    loops = []

    async def judge(completions: list[str]) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return word_count(completions)

    for _ in range(2):
        Reward(judge).score(BATCH)
    assert loops[0] is loops[1]
    assert loops[0].is_running()


def test_an_asynchronous_failure_names_its_text() -> None:
    async def parse(completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [float(text) for text in completions]

    with pytest.raises(RewardError, match=r"'parse' raised ValueError .* for completion 1 of 2: 'two'"):
        Reward(parse).score([completion("1"), completion("two")])


def test_an_asynchronous_reward_that_scores_with_another_in_plain_code_does_not_wait_for_itself() -> None:
    async def nested(completions: list[str]) -> list[float]:
        return Reward(awaited_word_count).score(BATCH).totals.tolist()

    with pytest.raises(RewardError, match="in plain code: await it"):
        Reward(nested).score(BATCH[:1])


def test_an_error_that_names_its_text_is_not_asked_about_again() -> None:
    calls = 0

    def careful(completions: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        raise RewardError("reward 'careful' does not like 'b c'")

    with pytest.raises(RewardError, match=r"^reward 'careful' does not like 'b c'$"):
        Reward(careful).score(BATCH)
    assert calls == 1


def test_long_texts_are_cut_in_messages() -> None:
    with pytest.raises(RewardError) as caught:
        returning("no number").score([completion("word " * 10_000, prompt="ask " * 10_000)])
    assert "word word" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_none_becomes_a_mask_that_nobody_can_pay_by_mistake() -> None:
    judgement = returning(1.0, None, [0, 0, 0, 2]).judge(BATCH)
    assert judgement.valid.tolist() == [True, False, True]
    assert np.isnan(judgement.token_rewards[1]).all()
    assert judgement.token_rewards[2].tolist() == [0, 0, 0, 2]
    np.testing.assert_array_equal(judgement.totals, [1.0, np.nan, 2.0])
    paid = judgement.components["fixed"]
    np.testing.assert_array_equal(paid["raw"], [1.0, np.nan, 2.0])
    np.testing.assert_array_equal(paid["weighted"], [1.0, 0.0, 2.0])


def test_an_empty_batch_asks_nothing() -> None:
    def never(completions: list[str]) -> list[float]:
        raise AssertionError("never called")

    scores = Reward(never).score([])
    assert scores.totals.shape == (0,)
    assert scores.components["never"]["raw"].shape == (0,)


# --- a plug-in that raises --------------------------------------------------------------------------------


def test_an_exception_names_the_text_that_caused_it() -> None:
    batches: list[list[str]] = []

    def parse(completions: list[str]) -> list[float]:
        batches.append(completions)
        return [float(text) for text in completions]

    texts = ["1", "2", "three", "four"]
    message = r"'parse' raised ValueError \(could not convert.*\) for completion 2 of 4: 'three' \(prompt: 'Say:'\)"
    with pytest.raises(RewardError, match=message) as caught:
        Reward(parse).score([completion(text) for text in texts])
    assert isinstance(caught.value.__cause__, ValueError)
    assert batches == [texts, ["1"], ["2"], ["three"]]


def test_a_single_text_is_not_tried_twice() -> None:
    calls = 0

    def broken(completions: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        raise KeyError("k")

    with pytest.raises(RewardError, match=r"raised KeyError \('k'\) for completion 0 of 1: 'x'"):
        Reward(broken).score([completion("x")])
    assert calls == 1


def test_the_retry_keeps_the_columns_of_the_batch() -> None:
    def sparse(completions: list[str], answer: list[str | None]) -> list[float]:
        return [float(value or 0) for value in answer]

    batch = [completion("without"), completion("with", answer="x")]
    with pytest.raises(RewardError, match="completion 1 of 2: 'with'"):
        Reward(sparse).score(batch)


def test_a_failure_of_the_batch_alone_blames_no_text() -> None:
    def batch_only(completions: list[str]) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("out of memory")
        raise ValueError("another matter")  # not the failure that is being looked for

    with pytest.raises(RewardError, match=r"raised RuntimeError .* on the batch of 3 .*none of them fails that way"):
        Reward(batch_only).score(BATCH)


def test_interrupts_pass_through() -> None:
    def interrupted(completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reward(interrupted).score(BATCH)


# --- dense rewards ----------------------------------------------------------------------------------------


def test_a_dense_reward_pays_prefixes_token_by_token() -> None:
    reward = resolve_reward(each_token_its_id)
    assert reward.kind == "dense"
    scores = reward.score([completion("x", 2, stop_reason=None)])
    assert scores.token_rewards[0].tolist() == [5.0, 6.0]


def test_a_dense_reward_that_returns_floats_is_told_what_to_return() -> None:
    with pytest.raises(RewardError, match=r"'word_count' is dense .* single number 2\.0 .*'b c'.*\(here 2\)"):
        Reward(dense(functools.partial(word_count))).score(BATCH[1:])
    assert Reward(word_count).kind == "terminal"


def test_the_mark_may_sit_on_the_class_its_call_or_inside_a_partial() -> None:
    @dense
    class OnClass:
        def __call__(self, completions: list[str]) -> list[Any]:
            return []

    class OnCall:
        @dense
        def __call__(self, completions: list[str]) -> list[Any]:
            return []

    assert Reward(OnClass()).kind == "dense"
    assert Reward(OnCall()).kind == "dense"
    assert Reward(functools.partial(each_token_its_id)).kind == "dense"


# --- names, attributes, registry --------------------------------------------------------------------------


def test_names_kinds_and_bounds_are_read_off_the_plug_in() -> None:
    class Named(Brevity):
        name = "short"

    assert Reward(word_count).name == "word_count"
    assert Reward(lambda completions: [0]).name == "lambda"
    assert Reward(functools.partial(word_count)).name == "word_count"
    assert Reward(Brevity()).name == "brevity"
    assert Reward(functools.partial(Brevity())).bounds == (-10.0, 0.0)
    assert Reward(Named()).name == "short"
    assert Reward(Named(), name="other").name == "other"
    assert Reward(word_count).bounds is None


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("kind", "densee", "did you mean 'dense'"),
        ("bounds", (1, 0), "give a pair"),
        ("bounds", 1, "give a pair"),
        ("bounds", (0, 1, 2), "give a pair"),
        ("bounds", (0, float("nan")), "give a pair"),
    ],
)
def test_malformed_attributes_are_refused(attribute: str, value: Any, message: str) -> None:
    function = Brevity()
    setattr(function, attribute, value)
    with pytest.raises(RewardError, match=message):
        Reward(function)


def test_registered_names_resolve_and_score() -> None:
    assert {"rouge_1", "rouge_2", "rouge_l", "rouge_lsum"} <= set(reward_names())
    reward = resolve_reward("rouge_l")
    assert (reward.name, reward.kind, reward.bounds) == ("rouge_l", "terminal", (0.0, 1.0))
    batch = [completion("the cat", references=("the cat",)), completion("", references=("the cat",))]
    assert reward.score(batch).totals.tolist() == [1.0, 0.0]


def test_every_way_to_point_at_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    here = word_count.__module__
    assert resolve_reward(f"{here}:word_count").function is word_count
    assert resolve_reward(f"{here}:Brevity").name == "brevity"
    assert resolve_reward(Brevity).score(BATCH).totals.tolist() == [-1.0, -3.0, 0.0]
    assert resolve_reward(Brevity(2.0)).score(BATCH).totals.tolist() == [-2.0, -6.0, 0.0]
    assert resolve_reward(word_count, name="words").name == "words"
    ready = Reward(word_count)
    assert resolve_reward(ready) is ready
    assert resolve_reward(ready, name="words").name == "words"
    assert ready.name == "word_count"


def test_registering_a_class_or_a_function_with_settings() -> None:
    here = word_count.__module__
    register_reward("half_brevity", f"{here}:Brevity", scale=0.5)
    register_reward("half_brevity", f"{here}:Brevity", scale=0.5)  # a module imported twice does no harm
    register_reward("words", f"{here}:word_count")
    assert resolve_reward("half_brevity").score(BATCH).totals.tolist() == [-0.5, -1.5, 0.0]
    assert resolve_reward("half_brevity").name == "half_brevity"
    assert resolve_reward("half_brevity", name="mine").name == "mine"
    assert resolve_reward("words").score(BATCH).totals.tolist() == [1.0, 2.0, 0.0]
    with pytest.raises(ValueError, match=r"'half_brevity' is already registered as .*'scale': 0\.5"):
        register_reward("half_brevity", f"{here}:Brevity", scale=2.0)
    assert resolve_reward("half_brevity").score(BATCH[:1]).totals.tolist() == [-0.5]


@pytest.mark.parametrize(
    ("name", "entry_point", "message"),
    [
        ("", "a:b", "cannot name a reward"),
        ("a:b", "a:b", "cannot name a reward"),
        ("mine", "no_colon", "must be a string 'package.module:attribute'"),
        ("mine", word_count, "pass it as reward=function"),
    ],
)
def test_registrations_that_could_never_resolve_are_refused(name: str, entry_point: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_reward(name, entry_point)


def test_references_that_lead_nowhere_name_the_mend() -> None:
    with pytest.raises(ValueError, match=r"unknown reward 'rouge_k'; did you mean 'rouge_.*'module:attr'"):
        resolve_reward("rouge_k")
    with pytest.raises(AttributeError, match="did you mean 'word_count'"):
        resolve_reward(f"{word_count.__module__}:word_cuont")
    with pytest.raises(ImportError, match="PYTHONPATH"):
        resolve_reward("no_such_module_anywhere:reward")
    with pytest.raises(TypeError, match="got int: 5"):
        resolve_reward(5)  # type: ignore[arg-type]

    class Needy:
        def __init__(self, model: str) -> None: ...

    with pytest.raises(TypeError, match=r"class Needy .*'model'.*Pass an instance"):
        resolve_reward(Needy)


@pytest.mark.parametrize("source", ["rouge_l", word_count, Brevity(3.0), functools.partial(word_count)])
def test_rewards_pickle_and_deepcopy(source: Any) -> None:
    reward = resolve_reward(source)
    batch = [completion("a b", references=("a c",))]
    for twin in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        assert twin.name == reward.name
        assert twin.score(batch).totals.tolist() == reward.score(batch).totals.tolist()


def test_errors_pickle() -> None:
    # A subprocess environment hands its errors over this way.
    with pytest.raises(RewardError) as caught:
        returning(None).score(BATCH[:1])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_naming_rewards_imports_none_of_them() -> None:
    code = "import sys, textgen_env.reward_registry; sys.exit('reward_models' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
