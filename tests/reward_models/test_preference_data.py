import json

import pytest

from reward_models.preference.data import (
    Comparison,
    Ranking,
    Rating,
    kind_of,
    read_preferences,
    split_preferences,
)

RATING = {"prompt": "p", "completion": "c", "rating": 3}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
RANKING = {"prompt": "p", "ranking": ["a", "b", "c"]}


def write(tmp_path, *records):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (RATING, Rating("p", "c", 3.0)),
        (PAIR, Comparison("p", "a", "b")),
        ({**PAIR, "margin": 0.5}, Comparison("p", "a", "b", margin=0.5)),
        ({**PAIR, "margin": None, "tie": True}, Comparison("p", "a", "b", tie=True)),
        (RANKING, Ranking("p", ("a", "b", "c"))),
    ],
)
def test_the_kind_is_found_in_the_fields(tmp_path, record, expected):
    found = read_preferences(write(tmp_path, record, {**record, "note": "ignored"}))
    assert found == [expected, expected]
    assert isinstance(expected, {"rating": Rating, "comparison": Comparison, "ranking": Ranking}[kind_of(found)])


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([PAIR, RATING], r"data.jsonl, line 2: no field 'chosen'"),
        (
            [PAIR, {"prompt": "p", "choosen": "a", "rejected": "b"}],
            r"line 2: no field 'chosen'; did you mean 'choosen'",
        ),
        ([{"prompt": "p", "text": "a"}], r"line 1: fields prompt, text are no judgement. Wanted are rating: prompt"),
        ([{**RATING, "rating": "good"}], r"line 1, field 'rating': expected a finite number, got 'good'"),
        ([{**RATING, "rating": True}], r"field 'rating': expected a finite number, got True"),
        ([{**RATING, "rating": float("nan")}], r"field 'rating': expected a finite number"),
        ([{**PAIR, "chosen": [{"role": "user"}]}], r"field 'chosen': expected a string, got list"),
        ([{**PAIR, "margin": -1}], r"field 'margin': expected 0 or more, got -1"),
        ([{**PAIR, "tie": "yes"}], r"field 'tie': expected true or false, got 'yes'"),
        ([{**PAIR, "tie": True, "margin": 1}], r"a tie has no margin"),
        ([{**RANKING, "ranking": ["a"]}], r"field 'ranking': expected a list of two or more strings"),
    ],
)
def test_bad_records_are_named(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        read_preferences(write(tmp_path, *records))


def test_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'comparison'"):
        read_preferences(write(tmp_path, PAIR), "comparisons")


def test_no_prompt_is_on_both_sides():
    judgements = [Rating(f"prompt {i % 50}", str(i), float(i)) for i in range(200)]
    train, validation = split_preferences(judgements, 0.2)
    sides = {item.prompt for item in train}, {item.prompt for item in validation}
    assert not sides[0] & sides[1]
    assert len(train) + len(validation) == 200
    assert 20 < len(validation) < 60
    grown, _ = split_preferences([*judgements, Rating("another", "", 0.0)], 0.2)
    assert [item for item in grown if item.prompt != "another"] == train  # new data moves nobody


@pytest.mark.parametrize(("share", "message"), [(1.0, "must lie in"), (0.5, "1 prompts, .* leaves none")])
def test_a_split_without_a_side_is_refused(share, message):
    with pytest.raises(ValueError, match=message):
        split_preferences([Rating("p", "a", 1.0), Rating("p", "b", 2.0)], share)


def test_kinds_do_not_mix():
    with pytest.raises(ValueError, match="one kind"):
        kind_of([Rating("p", "a", 1.0), Comparison("p", "a", "b")])
    with pytest.raises(ValueError, match="no preferences"):
        kind_of([])
