"""Items and answers: what can be asked and said, and what cannot."""

import itertools
import json

import numpy as np
import pytest

from reward_models.feedback import FeedbackError, Item, Prefer, Rank, Rate, Skip, TooLong, Write, read_answer
from reward_models.feedback.answers import MAX_NOTE, MAX_TEXT, check_answer, same_answer
from reward_models.feedback.items import SCALE, read_items, write_items

ITEMS = [
    Item.of("Say:", ["one"], scale=(0, 10), gold=Rate(3)),
    Item.of("Say:", ["one", "two"], sources=["ppo", "sft"], gold=Prefer(None)),
    Item.of("Say:", ["one", "two"], kind="ranking", id="mine"),
    Item.of("Say: \u2028 =1+1", ["one", "two", ""], gold=Rank((2, 0, 1))),
    Item.of("Say:"),
]
ANSWERS = [Rate(2.5), Prefer(1, 0.5), Prefer(None), Rank((2, 0, 1)), Write("well"), Skip("cut off"), Skip()]


def test_the_kind_follows_from_the_number_of_texts():
    assert [item.kind for item in ITEMS] == ["rating", "comparison", "ranking", "ranking", "demonstration"]
    assert Item.of("p", ["x"]).scale == SCALE


def test_the_id_is_the_content():
    assert Item.of("p", ["a", "b"]).id == Item.of("p", ["a", "b"], gold=Prefer(0)).id
    changed = [("q", ["a", "b"], ()), ("p", ["b", "a"], ()), ("p", ["a", "b"], ("x", "y")), ("p", ["ab"], ())]
    ids = {Item.of("p", ["a", "b"]).id, *(Item.of(p, texts, sources=sources).id for p, texts, sources in changed)}
    assert len(ids) == 5


def test_items_survive_a_file(tmp_path):
    path = tmp_path / "items.jsonl"
    write_items(path, ITEMS)
    assert read_items(path) == ITEMS


def test_a_file_may_say_little_and_the_caller_the_kind(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"prompt": "p", "completions": ["a", "b"]}\n\n{"prompt": "q"}\n')
    assert [item.kind for item in read_items(path)] == ["comparison", "demonstration"]
    path.write_text('{"prompt": "p", "completions": ["a", "b"]}\n')
    assert read_items(path, kind="ranking")[0].kind == "ranking"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p", "completion": ["a"]}, "line 2: unknown field 'completion'; did you mean 'completions'"),
        ({"completions": ["a"]}, "line 2: no field 'prompt'"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": 5}, "the prompt: expected a string, got int"),
        ({"prompt": "p", "completions": "ab"}, "'completions': expected a list, got str"),
        ({"prompt": "p", "completions": ["a", None]}, "completion 2: expected a string, got NoneType"),
        ({"prompt": "p", "completions": ["a", "a"]}, "the same text"),
        ({"prompt": "p", "completions": ["a", "b"], "sources": ["x"]}, "1 sources for 2 completions"),
        ({"prompt": "p", "completions": ["a", "b"], "kind": "rating"}, "a rating has 1 completions, got 2"),
        ({"prompt": "p", "completions": ["a", "b"], "kind": "ratings"}, "did you mean 'rating'"),
        ({"prompt": "p", "completions": [str(n) for n in range(17)]}, "has 2 to 16 completions, got 17"),
        ({"prompt": "p", "completions": ["a", "b"], "gold": {"rating": 3}}, "answered by Prefer or Skip, not by Rate"),
        ({"prompt": "p", "completions": ["a", "b"], "gold": {"preferred": 2}}, "preferred is 0, 1 or None"),
        ({"prompt": "p", "completions": ["a", "b"], "gold": {"skip": ""}}, "a gold answer is"),
        ({"prompt": "p", "completions": ["a"], "gold": {"rating": 9}}, "9 is not on the scale from 1 to 7"),
        ({"prompt": "p", "completions": ["a"], "scale": [7, 1]}, "a lowest and a highest rating"),
        ({"prompt": "p", "completions": ["a"], "scale": ["1", 7]}, "expected [lowest, highest]"),
        ({"prompt": "p", "completions": ["a", "b"], "scale": [1, 7]}, "a rating has a scale, and nothing else"),
        ({"prompt": "p", "id": ""}, "id is empty"),
        ({"prompt": "p\ud800"}, "lone surrogate"),
    ],
)
def test_what_is_no_item_is_named_with_its_line(tmp_path, record, message):
    path = tmp_path / "items.jsonl"
    path.write_text('{"prompt": "fine"}\n' + json.dumps(record) + "\n")
    with pytest.raises(FeedbackError) as caught:
        read_items(path)
    assert "items.jsonl, line 2" in str(caught.value)
    assert message in str(caught.value)


def test_one_string_is_no_list_of_texts():
    with pytest.raises(FeedbackError, match="got one string"):
        Item.of("p", "ab")


@pytest.mark.parametrize("long", [{"prompt": "x" * (MAX_TEXT + 1)}, {"prompt": "p", "completions": ["x" * 100_001]}])
def test_texts_have_a_limit(long):
    with pytest.raises(TooLong, match="100001 characters, the limit is 100000"):
        Item.of(**long)
    assert Item.of("x" * MAX_TEXT).prompt


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_survive_json(answer):
    assert read_answer(json.loads(json.dumps(answer.to_json()))) == answer


def test_numbers_of_other_libraries_are_numbers():
    assert read_answer({"preferred": np.int64(1), "margin": np.float32(0.5)}) == Prefer(1, 0.5)
    assert type(read_answer({"ranking": [np.int64(1), 0]}).ranking[0]) is int


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([0], "expected an object, got list"),
        ({}, "got nothing"),
        ({"prefered": 0}, "one of rating, preferred, tie, ranking, text, skip is wanted, got prefered"),
        ({"preferred": 0, "tie": True}, "got preferred and tie"),
        ({"preferred": 0, "margins": 1}, "unknown field 'margins'; did you mean 'margin'"),
        ({"preferred": None}, "expected an index, got None"),
        ({"preferred": True}, "expected an index, got True"),
        ({"preferred": 0.0}, "expected an index"),
        ({"tie": False}, "it can only be true"),
        ({"rating": "5"}, "expected a finite number, got '5'"),
        ({"rating": float("nan")}, "expected a finite number"),
        ({"ranking": "210"}, "expected a list of indices"),
        ({"text": 5}, "expected a string, got int"),
    ],
)
def test_what_is_no_answer_is_refused(record, message):
    with pytest.raises(FeedbackError) as caught:
        read_answer(record)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "kind", "count", "message"),
    [
        (Prefer(2), "comparison", 2, "preferred is 0, 1 or None for a tie, got 2"),
        (Prefer(-1), "comparison", 2, "preferred is 0, 1"),
        (Prefer(0, -1.0), "comparison", 2, "a margin is 0 or more"),
        (Prefer(None, 1.0), "comparison", 2, "and 0 for a tie"),
        (Rank((0, 1)), "ranking", 3, "names each of 0 … 2 once"),
        (Rank((0, 1, 1)), "ranking", 3, "names each of 0 … 2 once"),
        (Rank((0, 1)), "comparison", 2, "answered by Prefer or Skip, not by Rank"),
        (Write(" "), "demonstration", 0, "the text is empty"),
        (Rate(7.5), "rating", 1, "7.5 is not on the scale from 1 to 7"),
    ],
)
def test_an_answer_must_answer_the_question(answer, kind, count, message):
    with pytest.raises(FeedbackError) as caught:
        check_answer(answer, kind, count, (1.0, 7.0) if kind == "rating" else None)
    assert message in str(caught.value)


def test_answers_have_limits():
    with pytest.raises(TooLong):
        check_answer(Write("x" * (MAX_TEXT + 1)), "demonstration", 0)
    with pytest.raises(TooLong):
        check_answer(Skip("x" * (MAX_NOTE + 1)), "rating", 1)


@pytest.mark.parametrize("shown", list(itertools.permutations(range(3))))
def test_indices_go_to_the_item_and_back(shown):
    """Text ``shown[i]`` of the item stands at place i, whatever is said about it."""
    item, display = "abc", ["abc"[index] for index in shown]
    back = [shown.index(index) for index in range(3)]
    for ranking in itertools.permutations(range(3)):
        own = Rank(ranking).relabelled(shown)
        assert [item[index] for index in own.ranking] == [display[index] for index in ranking]
        assert own.relabelled(back) == Rank(ranking)
    for place in range(2):
        assert item[Prefer(place, 2.0).relabelled(shown).preferred] == display[place]
    for answer in (Prefer(None), Rate(3), Write("t"), Skip()):
        assert answer.relabelled(shown) == answer


def test_the_same_answer():
    assert same_answer(Prefer(1, 0.5), Prefer(1, 2.0))
    assert not same_answer(Prefer(None), Prefer(0))
    assert same_answer(Rank((0, 1)), Rank((0, 1)))
    assert not same_answer(Rate(4), Rate(5))
    assert same_answer(Rate(4), Rate(5), tolerance=1)
