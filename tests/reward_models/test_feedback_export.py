"""Judgements to files and back."""

import csv
import json

import pytest

from reward_models.feedback import (
    Conflict,
    FeedbackError,
    FeedbackStore,
    Item,
    Prefer,
    Rank,
    Rate,
    Skip,
    Write,
    export_judgements,
    import_judgements,
)
from reward_models.feedback.export import formula_safe
from reward_models.preference import Comparison, Ranking, Rating, read_preferences, split_preferences
from textgen_env import TextTask

SAYS = {"rating": Rate(2.0), "comparison": Prefer(1, 0.5), "ranking": Rank((2, 0, 1)), "demonstration": Write("=1+1")}


@pytest.fixture
def store(store_path):
    """Two annotators on each kind of item, two ties, a skip, a gold item."""
    with FeedbackStore(store_path, create=True) as store:
        store.configure(overlap=2, gold_share=0.2)
        store.set_guidelines("Be kind.")
        for n in range(3):
            store.add_items(
                [
                    Item.of(f"p{n}", ["a"], scale=(0, 5)),
                    Item.of(f"p{n}", [f"b{n}", "a\u2028\n"], sources=["ppo", "sft"]),
                    Item.of(f"p{n}", ["c", "b", "a"]),
                    Item.of(f"p{n}"),
                ]
            )
        store.add_items([Item.of("tie", ["a", "b"]), Item.of("gold", ["x", "y"], gold=Prefer(0))])
        for name in ("Ada", "Bob"):
            while (task := store.assign(name)) is not None:
                said = Prefer(None) if task.prompt == "tie" else SAYS[task.kind]
                store.submit(name, task.id, task.id, said)
        yield store


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_reward_models_and_tasks_read_the_files(store, tmp_path):
    counts = export_judgements(store.judgements(), tmp_path / "out")
    names = {path.name: count for path, count in counts.items()}
    assert names == {"ratings.jsonl": 6, "comparisons.jsonl": 8, "rankings.jsonl": 6, "demonstrations.jsonl": 6}
    ratings, comparisons, rankings = (
        read_preferences(tmp_path / "out" / f"{kind}.jsonl") for kind in ("ratings", "comparisons", "rankings")
    )
    assert Rating("p0", "a", 2.0) in ratings
    assert comparisons.count(Comparison("tie", "a", "b", 0.0, True)) == 2
    assert {item.margin for item in comparisons if not item.tie} == {0.5}
    assert all(isinstance(item, Ranking) and set(item.completions) == set("abc") for item in rankings)
    task = TextTask.from_jsonl(tmp_path / "out" / "demonstrations.jsonl", fractions=(1, 0, 0))
    assert {prompt.text: prompt.references for prompt in task.prompts()} == {f"p{n}": ("=1+1",) for n in range(3)}


def test_what_was_preferred_as_shown_is_chosen(store, tmp_path):
    export_judgements(store.judgements(), tmp_path)
    for record in lines(tmp_path / "comparisons.jsonl"):
        if not record["tie"]:  # the second one shown was preferred, every time
            assert record["order"][0] == record["shown"][1]
            assert record["sources"][0] == ("sft" if record["chosen"] == "a\u2028\n" else "ppo")
    for record in lines(tmp_path / "rankings.jsonl"):
        assert record["order"] == [record["shown"][place] for place in (2, 0, 1)]


def test_nobodys_name_is_in_a_file(store, tmp_path):
    export_judgements(store.judgements(), tmp_path, purposes=("fresh", "gold", "repeat"))
    text = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.jsonl"))
    assert "Ada" not in text
    assert "Bob" not in text
    assert {record["annotator"] for record in lines(tmp_path / "ratings.jsonl")} == {
        store.pseudonym("Ada"),
        store.pseudonym("Bob"),
    }
    assert {record["guidelines"] for record in lines(tmp_path / "ratings.jsonl")} == {1}


def test_gold_items_and_repeats_are_left_out_unless_asked_for(store, tmp_path):
    export_judgements(store.judgements(), tmp_path / "fresh")
    assert not [record for record in lines(tmp_path / "fresh" / "comparisons.jsonl") if record["prompt"] == "gold"]
    asked = {judgement.annotator for judgement in store.judgements() if judgement.purpose == "gold"}
    export_judgements(store.judgements(), tmp_path / "gold", purposes=("gold",))
    assert {record["annotator"] for record in lines(tmp_path / "gold" / "comparisons.jsonl")} == asked != set()


def test_a_round_trip_changes_nothing(store, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    export_judgements(store.judgements(), first)
    with FeedbackStore(tmp_path / "other.db", create=True) as other:
        read = [import_judgements(other, path) for path in sorted(first.glob("*.jsonl"))]
        assert sum(new for new, _ in read) == 26
        assert [import_judgements(other, path)[0] for path in sorted(first.glob("*.jsonl"))] == [0, 0, 0, 0]
        export_judgements(other.judgements(), second)
        for path in first.glob("*.jsonl"):
            assert sorted(map(str, lines(path))) == sorted(map(str, lines(second / path.name)))
        assert len(other.items()) == 13
        assert other.forget(store.pseudonym("Ada")) == 13
    assert [import_judgements(store, path) for path in sorted(first.glob("c*.jsonl"))] == [(0, 8)]  # its own


def test_a_prompt_is_on_one_side(tmp_path, store_path):
    with FeedbackStore(store_path, create=True) as store:
        store.add_items([Item.of(f"p{n // 2}", [f"a{n}", f"b{n}"]) for n in range(60)])
        while (task := store.assign("ada")) is not None:
            store.submit("ada", task.id, task.id, Prefer(0))
        export_judgements(store.judgements(), tmp_path / "split", validation=0.3)
        export_judgements(store.judgements(), tmp_path / "whole")
        with pytest.raises(
            FeedbackError, match=r"comparisons: a validation share of 1e-09 puts all 30 prompts into train"
        ):
            export_judgements(store.judgements(), tmp_path / "none", validation=1e-9)
    train, validation = (
        read_preferences(tmp_path / "split" / f"comparisons.{side}.jsonl") for side in ("train", "validation")
    )
    assert not {item.prompt for item in train} & {item.prompt for item in validation}
    assert (train, validation) == split_preferences(read_preferences(tmp_path / "whole" / "comparisons.jsonl"), 0.3)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_runs_nothing(start, tmp_path, store_path):
    evil = f"{start}HYPERLINK(1)"
    with FeedbackStore(store_path, create=True) as store:
        store.add_items([Item.of(f"{start}p", [evil], scale=(-5, 5))])
        store.submit("ada", store.assign("ada").id, "s", Rate(-2))
        export_judgements(store.judgements(), tmp_path, format="csv")
    with (tmp_path / "ratings.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["prompt"], row["completion"], row["rating"]) == (f"'{start}p", f"'{evil}", "-2.0")
    assert not [cell for name, cell in row.items() if name != "rating" and cell[:1] in tuple("=+-@\t\r")]
    assert formula_safe("a=b") == "a=b"


def test_lists_in_a_csv_are_json(store, tmp_path):
    export_judgements(store.judgements(), tmp_path, format="csv")
    with (tmp_path / "rankings.csv").open(encoding="utf-8", newline="") as file:
        assert {tuple(sorted(json.loads(row["ranking"]))) for row in csv.DictReader(file)} == {("a", "b", "c")}


def test_files_are_not_written_over(store, tmp_path):
    export_judgements(store.judgements(), tmp_path)
    with pytest.raises(FileExistsError, match="is there already"):
        export_judgements(store.judgements(), tmp_path)
    with pytest.raises(FeedbackError, match="no judgements to write"):
        export_judgements([], tmp_path / "empty")
    with pytest.raises(FeedbackError, match="did you mean 'jsonl'"):
        export_judgements(store.judgements(), tmp_path, format="json")
    assert not list(tmp_path.glob("*.part"))


# ---------------------------------------------------------------- files of others


def imported(tmp_path, *records, **kwargs):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    with FeedbackStore(tmp_path / "store.db", create=True) as store:
        counts = import_judgements(store, path, **kwargs)
        return counts, list(store.judgements())


def test_public_data_are_read_and_annotators_meet_on_the_same_texts(tmp_path):
    counts, judgements = imported(
        tmp_path,
        {"prompt": "p", "chosen": "y", "rejected": "x", "annotator": "Ada"},
        {"prompt": "p", "chosen": "x", "rejected": "y", "annotator": "Bob", "other": 1},
        {"prompt": "q", "chosen": "x", "rejected": "y", "tie": True, "created": "2024-05-01T10:00:00Z"},
        {"prompt": "q", "completion": "x", "rating": 9},
        scale=(0, 10),
    )
    assert counts == (4, 0)
    assert judgements[0].item is judgements[1].item
    assert [judgement.answer for judgement in judgements] == [Prefer(1), Prefer(0), Prefer(None), Rate(9.0)]
    assert all(judgement.annotator.startswith("a-") for judgement in judgements)
    assert judgements[2].created.isoformat() == "2024-05-01T10:00:00+00:00"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p"}, "one of rating, chosen, ranking and reference is wanted"),
        ({"prompt": "p", "chosen": "a"}, "no field 'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "two of the texts are the same"),
        ({"prompt": "p", "chosen": "a", "rejected": 5}, "field 'rejected': got int 5"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": -1}, "a margin is 0 or more"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "item": "i", "order": [0, 0]}, "does not number 2 texts"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "shown": [1, 2]}, "cannot have been shown"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "created": "today"}, "no date and time"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "created": "2024-05-01T10:00:00"}, "has no time zone"),
        ({"prompt": "p", "completion": "a", "rating": 9}, "9 is not on the scale from 1 to 7"),
        ({"prompt": "p", "completion": "a", "rating": True}, "field 'rating': got bool"),
        ({"prompt": "p", "ranking": ["a", 5]}, "field 'ranking'"),
        ({"prompt": "first", "chosen": "b", "rejected": "a"}, "another answer"),
        ({"prompt": "p", "chosen": "b", "rejected": "a", "item": "mine"}, "another item 'mine'"),
    ],
)
def test_a_bad_record_is_named_and_nothing_is_read(tmp_path, record, message):
    fine = {"prompt": "first", "chosen": "a", "rejected": "b", "item": "mine", "order": [0, 1]}
    if "first" in record.values():
        del fine["item"]
    with pytest.raises(FeedbackError) as caught:
        imported(tmp_path, fine, record)
    assert "data.jsonl, line 2" in str(caught.value)
    assert message in str(caught.value)
    with FeedbackStore(tmp_path / "store.db") as store:
        assert (store.items(), list(store.judgements())) == ({}, [])


def test_a_judgement_from_elsewhere_is_about_an_item_that_is_here(store):
    with pytest.raises(FeedbackError, match="add it first"):
        store.add_judgement("unknown", "Ada", Prefer(0))
    store.add_items([Item.of("new", ["a"], id="new")])
    with pytest.raises(FeedbackError, match="a skip is no judgement"):
        store.add_judgement("new", "Ada", Skip())
    assert store.assign("Ada").prompt == "new"
    with pytest.raises(Conflict, match="about to give one"):
        store.add_judgement("new", "Ada", Rate(3))
