"""Asynchronous judges: many at once, tried again within bounds, and never a made-up score."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from reward_models import AsyncJudge, Cached, as_reward
from tests.reward_models.completions import completion, words
from textgen_env import Completion, Reward, RewardError, resolve_reward


def texts(*words: str) -> list[Completion]:
    return [completion(word) for word in words]


async def text_length(completion: str) -> float:
    await asyncio.sleep(0)
    return float(len(completion))


def test_every_text_is_judged_in_order() -> None:
    async def slow_first(completion: str) -> float:
        finished.append(completion)
        await asyncio.sleep(0.02 if completion == "a" else 0)
        return await text_length(completion)

    finished: list[str] = []
    reward = resolve_reward(AsyncJudge(slow_first, bounds=(0, 9)))
    assert (reward.name, reward.kind, reward.bounds) == ("slow_first", "terminal", (0.0, 9.0))
    assert reward.score(texts("a", "bb", "ccc")).totals.tolist() == [1.0, 2.0, 3.0]


def test_a_function_gets_what_it_names_of_one_text() -> None:
    async def spy(
        prompt: str,
        completion: str,
        completion_ids: Any,
        references: Any,
        stop_reason: Any,
        level: int,
        other: int = 7,
    ) -> float:
        seen.append((prompt, completion, completion_ids, references, stop_reason, level, other))
        return 0.0

    async def everything(**arguments: Any) -> float:
        named.append(sorted(arguments))
        return 0.0

    seen: list[Any] = []
    named: list[Any] = []
    Reward(AsyncJudge(spy)).score([completion("x", 2, level=3, more=1)])
    assert seen == [("Say:", "x", [5, 6], ["a b"], "eos", 3, 7)]
    Reward(AsyncJudge(everything)).score([completion("x", level=3)])
    assert named == [["completion", "completion_ids", "level", "prompt", "references", "stop_reason"]]


def test_an_argument_there_is_none_of_is_named() -> None:
    async def plural(completions: str) -> float:
        return 0.0

    with pytest.raises(RewardError, match=r"wants an argument 'completions', .*did you mean 'completion'"):
        Reward(AsyncJudge(plural)).score(texts("a"))
    with pytest.raises(RewardError, match=r"gets 'prompt' as a standard argument.*rename the column"):
        Reward(AsyncJudge(text_length)).score([completion("x", prompt="mine")])


def test_no_more_requests_than_asked_for_are_on_their_way() -> None:
    async def counting(completion: str) -> float:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return 0.0

    now = most = 0
    Reward(AsyncJudge(counting, concurrency=3)).score(texts(*"abcdefgh"))
    assert most == 3


class Flaky:
    """Fails a number of times, then answers."""

    __name__ = "flaky"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    async def __call__(self, completion: str) -> float:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError("busy")
        return 1.0


def test_failures_are_tried_again_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_wait(seconds: float) -> None:
        waits.append(seconds)

    waits: list[float] = []
    monkeypatch.setattr("reward_models.judge.asyncio.sleep", no_wait)
    flaky = Flaky(2)
    assert Reward(AsyncJudge(flaky, retries=2, backoff=0.5)).score(texts("a")).totals.tolist() == [1.0]
    assert (flaky.calls, waits) == (3, [0.5, 1.0])
    flaky = Flaky(3)
    with pytest.raises(
        RewardError, match=r"^reward 'flaky' raised ConnectionError \(busy\) at the last of 3 tries for 'a'$"
    ):
        Reward(AsyncJudge(flaky, retries=2)).score(texts("a"))
    assert flaky.calls == 3  # and it was not asked again to find the culprit


def test_a_judge_that_never_answers_is_given_up() -> None:
    async def silent(completion: str) -> float:
        try:
            await asyncio.Event().wait()
        finally:
            called_off.append(completion)
        return 0.0

    called_off: list[str] = []
    message = "reward 'silent' gave no answer within 0.01 s at the last of 2 tries for 'a'"
    with pytest.raises(RewardError, match=message):
        Reward(AsyncJudge(silent, timeout=0.01, retries=1, backoff=0.0)).score(texts("a"))
    assert called_off == ["a", "a"]


def test_one_failure_calls_the_others_off() -> None:
    async def one_bad(completion: str) -> float:
        if completion == "bad":
            raise RewardError("the judge refuses 'bad'")  # final: not tried again
        try:
            await asyncio.sleep(60)
        finally:
            called_off.append(completion)
        return 0.0

    called_off: list[str] = []
    with pytest.raises(RewardError, match=r"^the judge refuses 'bad'$"):
        Reward(AsyncJudge(one_bad)).score(texts("a", "bad", "b"))
    assert sorted(called_off) == ["a", "b"]


@pytest.mark.parametrize(
    ("answer", "message"), [("4 of 5", "returned str '4 of 5'"), (float("nan"), "not finite"), ({}, "returned dict")]
)
def test_answers_that_are_no_score_are_refused(answer: Any, message: str) -> None:
    async def judge(completion: str) -> Any:
        return answer

    with pytest.raises(RewardError, match=f"reward 'judge' {message}|returned a value that is {message}"):
        Reward(AsyncJudge(judge)).score(texts("a"))


def test_a_plain_function_is_told_what_to_do() -> None:
    with pytest.raises(RewardError, match=r"'words' answered at once.*asyncio\.to_thread"):
        Reward(AsyncJudge(lambda completion: 1.0, name="words")).score(texts("a"))  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="needs an async function of one text, got str"):
        AsyncJudge("gpt")  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [{"concurrency": 0}, {"timeout": 0}, {"retries": -1}, {"backoff": -1.0}])
def test_settings_that_make_no_sense_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(RewardError, match="AsyncJudge needs concurrency >= 1"):
        AsyncJudge(text_length, **setting)


def test_it_composes_caches_and_may_not_apply() -> None:
    async def not_b(completion: str) -> float | None:
        asked.append(completion)
        return None if completion == "b" else 1.0

    asked: list[str] = []
    reward = 0.5 * Cached(AsyncJudge(not_b)) + as_reward(words)
    for _ in range(2):
        assert reward.score(texts("a", "b", "a")).totals.tolist() == [1.5, 1.0, 1.5]
    assert asked == ["a", "b"]


def test_it_works_where_a_loop_is_running() -> None:
    async def notebook() -> list[float]:
        return Reward(AsyncJudge(text_length)).score(texts("a", "bb")).totals.tolist()

    assert asyncio.run(notebook()) == [1.0, 2.0]
