"""Rewards of TRL and RL4LMs here, and ours there."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from reward_models import Cached, Gate, Rouge, as_reward, conversational, from_rl4lms, to_trl
from tests.reward_models.completions import completion, id_tenths, length, make_mdp, short_only, words
from textgen_env import Reward, RewardError, resolve_reward, word_tokenizer

BATCH = [completion("a b", 2, level=1), completion("c", 3, level=2)]


# --- from TRL ---------------------------------------------------------------------------------------------


def reward_len(completions: list[str], **kwargs: Any) -> list[float]:
    return [-abs(20 - len(text)) for text in completions]


def reward_ids(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


async def reward_async(prompts: list[str], completions: list[str], level: list[int], **kwargs: Any) -> list[float]:
    await asyncio.sleep(0)
    return [float(value) for value in level]


def reward_sometimes(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [None if text == "c" else 1.0 for text in completions]


def think_format_reward(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    contents = [messages[0]["content"] for messages in completions]
    return [float(text.startswith("a")) for text in contents]


def test_functions_written_for_trl_run_unchanged() -> None:
    mixture = 0.5 * as_reward(reward_len) + reward_ids + reward_async + 10 * as_reward(reward_sometimes)
    assert mixture.score(BATCH).totals.tolist() == [-8.5 + 2 + 1 + 10, -9.5 + 3 + 2]


def test_a_function_for_conversations_is_shown_the_adapter() -> None:
    with pytest.raises(RewardError, match=r"plain strings here.*neighbours\.conversational\(function\)"):
        resolve_reward(think_format_reward).score(BATCH)
    reward = resolve_reward(conversational(think_format_reward))
    assert reward.name == "think_format_reward"
    assert reward.score(BATCH).totals.tolist() == [1.0, 0.0]


def test_conversations_have_roles_and_columns_that_are_asked_for() -> None:
    def strict(prompts: Any, completions: Any, level: list[int]) -> list[float]:
        seen.append((prompts[0], completions[0], level))
        return [0.0, 0.0]

    seen: list[Any] = []
    resolve_reward(conversational(strict)).score(BATCH)
    assert seen == [([{"role": "user", "content": "Say:"}], [{"role": "assistant", "content": "a b"}], [1, 2])]


def test_an_asynchronous_function_for_conversations_is_awaited() -> None:
    async def polite(completions: Any, **_: Any) -> list[float]:
        return think_format_reward(completions)

    assert resolve_reward(conversational(polite)).score(BATCH).totals.tolist() == [1.0, 0.0]


# --- from RL4LMs ------------------------------------------------------------------------------------------


class Batched:
    """As RL4LMs' BatchedRewardFunction."""

    def __call__(
        self, prompt_texts: Any, gen_texts: Any, ref_texts: Any, dones: Any, meta_infos: Any = None
    ) -> list[float]:
        self.seen = (prompt_texts, gen_texts, ref_texts, dones, meta_infos)
        return [1.0, 2.0]


def test_batched_functions_of_rl4lms_get_their_five_lists() -> None:
    batched = Batched()
    reward = 2 * from_rl4lms(batched)
    assert repr(reward) == "2 * batched"
    assert reward.score(BATCH).totals.tolist() == [2.0, 4.0]
    prompts, references = ["Say:", "Say:"], [["a b"], ["a b"]]
    assert batched.seen == (prompts, ["a b", "c"], references, [True, True], [{"level": 1}, {"level": 2}])


def test_a_function_gets_as_many_as_it_takes() -> None:
    def overlap(prompts: Any, generations: Any, references: Any) -> list[float]:
        return [float(text in known) for text, known in zip(generations, references, strict=True)]

    def all_of_them(*lists: Any) -> list[float]:
        return [float(len(lists))] * 2

    assert resolve_reward(from_rl4lms(overlap)).score(BATCH).totals.tolist() == [1.0, 0.0]
    assert resolve_reward(from_rl4lms(all_of_them, name="all")).score(BATCH).totals.tolist() == [5.0, 5.0]


def test_functions_of_single_steps_are_refused() -> None:
    def per_step(current_observation: Any, action: int, next_observation: Any, done: bool, meta_info: Any) -> float:
        return 0.0

    with pytest.raises(RewardError, match="'per_step' is asked about single steps"):
        from_rl4lms(per_step)
    with pytest.raises(RewardError, match=r"must take \(prompts, generations"):
        from_rl4lms(lambda generations: [0.0], name="one")
    with pytest.raises(TypeError, match="expected a reward function, got str"):
        from_rl4lms("rouge")  # type: ignore[arg-type]


# --- to TRL -----------------------------------------------------------------------------------------------

TOKENIZER = word_tokenizer(("a", "b"))
CALL: dict[str, Any] = {
    "prompts": ["a", "b"],
    "completions": ["a b", "b"],
    "completion_ids": [[2, 3, 1], [3]],
    "references": [["a b"], ["a"]],
    "level": [1, 2],
    "trainer_state": object(),
    "log_extra": print,
    "log_metric": print,
}


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (Rouge("1"), [1.0, 0.0]),
        ("rouge_1", [1.0, 0.0]),
        (0.5 * Rouge("1") + length, [3.5, 1.0]),
        (Gate("rouge_1", length, otherwise=-1), [3.0, -1.0]),
        (Cached(words), [2.0, 1.0]),
        (id_tenths, [0.6, 0.3]),
        (reward_async, [1.0, 2.0]),
        (reward_sometimes, [1.0, 1.0]),
        (lambda completions: [None, 1.0], [None, 1.0]),
    ],
)
def test_any_reward_of_ours_is_one_of_trls(reward: Any, expected: list[float | None]) -> None:
    function = to_trl(reward, TOKENIZER)
    assert function.__name__ == resolve_reward(reward).name
    found = function(**CALL)
    assert found == pytest.approx(expected)
    assert all(type(value) in (float, type(None)) for value in found)


def test_what_trl_knows_of_a_text_is_handed_on() -> None:
    def spy(prompts: Any, completion_ids: Any, references: Any, stop_reasons: Any, level: Any, **rest: Any) -> Any:
        seen.append((prompts, completion_ids, references, stop_reasons, level, sorted(rest)))
        return [0.0, 0.0]

    seen: list[Any] = []
    to_trl(spy, TOKENIZER)(**CALL)
    expected = (["a", "b"], [[2, 3, 1], [3]], [["a b"], ["a"]], ["eos", "length"], [1, 2], ["completions"])
    assert seen == [expected]


def test_the_column_of_the_references_has_any_name() -> None:
    call = {**CALL, "references": [5, 6], "answer": ["a b", "a"]}
    assert to_trl("rouge_1", TOKENIZER, references="answer", name="overlap")(
        **{key: value for key, value in call.items() if key != "references"}
    ) == [1.0, 0.0]
    with pytest.raises(RewardError, match="wants texts in the column 'references', got int"):
        to_trl("rouge_1", TOKENIZER)(**call)


def test_a_completion_without_a_token_is_refused() -> None:
    call = {**CALL, "completion_ids": [CALL["completion_ids"][0], []]}
    with pytest.raises(RewardError, match=r"'rouge_1': completion 1, of prompt .*, has no token"):
        to_trl("rouge_1", TOKENIZER)(**call)


def test_conversations_are_refused() -> None:
    call = {**CALL, "completions": [[{"role": "assistant", "content": "a"}]] * 2}
    with pytest.raises(RewardError, match="'rouge_1' scores plain texts, and TRL gave it a conversation"):
        to_trl("rouge_1", TOKENIZER)(**call)


def test_there_and_back_again() -> None:
    mdp = make_mdp(to_trl(length, TOKENIZER))
    assert Reward(to_trl(short_only, TOKENIZER)).name == "short_only"
    assert mdp.score([mdp.complete(0, (2, 3, 1), "eos")]).totals.tolist() == [3.0]
    assert pickle.loads(pickle.dumps(to_trl("rouge_1", TOKENIZER)))(**CALL) == [1.0, 0.0]


def test_trl_itself_accepts_and_names_it() -> None:
    utils = pytest.importorskip("trl.trainer.utils")
    assert utils.get_callable_name(to_trl("rouge_1", TOKENIZER)) == "rouge_1"
