"""The store: blind, in random order, nothing lost, nothing doubled, nothing changed afterwards."""

import json
import math
import sqlite3
from collections import Counter

import pytest

from reward_models.feedback import (
    Conflict,
    FeedbackError,
    FeedbackStore,
    Item,
    Prefer,
    Rank,
    Rate,
    Settings,
    Skip,
    TooLong,
    UnknownTask,
    Write,
)
from reward_models.feedback.database import APPLICATION, VERSION


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(store_path, clock):
    with FeedbackStore(store_path, create=True, clock=clock) as store:
        yield store


def pairs(count, **kwargs):
    return [Item.of(f"prompt {n}", [f"good {n}", f"bad {n}"], sources=["ppo", "sft"], **kwargs) for n in range(count)]


def answer(store, annotator, choose=lambda task: Prefer(0), id=None):
    """Assign, answer, submit; the task, or None where nothing is left."""
    task = store.assign(annotator)
    if task is not None:
        assert store.submit(annotator, task.id, id or f"s-{store.latest}", choose(task))
    return task


def answer_rest(store, annotator, choose=lambda task: Prefer(0)):
    return list(iter(lambda: answer(store, annotator, choose), None))


def good(task):
    return Prefer([text.startswith("good") for text in task.completions].index(True))


def check_counts(store):
    """What the tables say has become of items and tasks is what the events say."""
    events = list(store.events())
    standing, about = {}, {}
    for event in events:
        if event.kind == "assign" and "item" in event.content:
            about[event.task] = event.content
        elif event.kind in ("answer", "skip"):
            assert event.task not in standing
            standing[event.task] = event.kind
        elif event.kind == "undo":
            del standing[event.task]
    answered = [task for task, kind in standing.items() if kind == "answer"]
    assert len(list(store.judgements())) == len(answered)
    expected = Counter(about[task]["item"] for task in answered if about[task]["purpose"] != "repeat")
    counted = dict(store._db.rows("SELECT id, answers FROM items WHERE answers > 0"))
    assert counted == dict(expected)


# ---------------------------------------------------------------- blind, in random order


def test_a_task_tells_nothing_but_the_question(store):
    store.add_items(pairs(3, gold=Prefer(0)))
    store.configure(gold_share=1.0)
    task = store.assign("ada")
    told = json.dumps(task.to_json())
    assert set(task.to_json()) == {"id", "kind", "prompt", "completions", "scale", "guidelines", "previous"}
    for secret in ("ppo", "sft", "gold", *store.items()):
        assert secret not in told


def test_texts_stand_in_random_order_and_answers_find_their_text(store):
    items = pairs(200)
    store.add_items(items)
    shown_first = sum(task.completions[0].startswith("good") for task in answer_rest(store, "ada", good))
    assert abs(shown_first - 100) < 5 * math.sqrt(50)
    judgements = list(store.judgements())
    assert len(judgements) == 200
    assert all(judgement.answer == Prefer(0) for judgement in judgements)  # the good one, wherever it stood
    assert sum(judgement.shown == (0, 1) for judgement in judgements) == shown_first


def test_rankings_are_turned_too(store):
    store.add_items([Item.of(f"p{n}", list("abcd")) for n in range(20)])
    answer_rest(store, "ada", lambda task: Rank(tuple(sorted(range(4), key=lambda place: task.completions[place]))))
    assert {judgement.answer for judgement in store.judgements()} == {Rank((0, 1, 2, 3))}
    assert len({judgement.shown for judgement in store.judgements()}) > 5


def test_a_task_stays_the_same_until_it_is_answered(store, store_path):
    store.add_items(pairs(30))
    task = store.assign("ada")
    assert store.assign("ada") == task
    with FeedbackStore(store_path) as again:
        assert again.assign("ada") == task
        answer(again, "ada")
    assert store.assign("ada") != task
    assert len({store.assign(name).completions[0][:3] for name in "abcdefgh"}) == 2


def test_the_order_of_everything_comes_from_the_seed(store_path):
    def prompts_and_texts(number, seed):
        with FeedbackStore(f"{store_path}{number}", create=True) as store:
            store.configure(seed=seed)
            store.add_items(pairs(12))
            return [(task.prompt, task.completions) for task in answer_rest(store, "ada")]

    first, same, other = (prompts_and_texts(number, seed) for number, seed in enumerate((1, 1, 2)))
    assert first == same
    assert [prompt for prompt, _ in first] != [prompt for prompt, _ in other]
    assert [prompt for prompt, _ in first] != [item.prompt for item in pairs(12)]


# ---------------------------------------------------------------- overlap, leases, gold, repeats


def test_every_item_gets_as_many_answers_as_wanted(store):
    store.configure(overlap=2)
    store.add_items(pairs(20))
    names = ["ada", "bob", "cyd"]
    while [name for name in names if answer(store, name)]:
        pass
    by_item = {}
    for judgement in store.judgements():
        by_item.setdefault(judgement.item.id, []).append(judgement.annotator)
    assert len(by_item) == 20
    assert all(len(set(annotators)) == len(annotators) == 2 for annotators in by_item.values())
    check_counts(store)
    progress = store.progress()
    assert (progress.items, progress.complete, progress.wanted, progress.answers) == (20, 20, 40, 40)


def test_items_that_others_have_answered_come_first(store):
    store.configure(overlap=2)
    store.add_items(pairs(20))
    answered = {answer(store, "ada").prompt for _ in range(3)}
    assert {answer(store, "bob").prompt for _ in range(3)} == answered


def test_an_open_task_is_reserved_for_a_while(store, clock):
    store.add_items(pairs(1))
    task = store.assign("ada")
    assert store.assign("bob") is None
    clock.now += 29 * 60
    assert store.assign("bob") is None
    clock.now += 2 * 60
    other = store.assign("bob")
    assert other.prompt == task.prompt
    assert store.submit("bob", other.id, "s", Prefer(0))
    assert store.submit("ada", task.id, "s", Prefer(0))  # late, and not lost
    assert len(list(store.judgements())) == 2


def test_gold_items_test_each_annotator_once_and_fill_no_overlap(store):
    store.configure(gold_share=0.3)
    store.add_items([*pairs(60), *(Item.of(f"gold {n}", ["good", "bad"], gold=Prefer(0)) for n in range(20))])
    answer_rest(store, "ada", good)
    by_purpose = Counter(judgement.purpose for judgement in store.judgements())
    assert by_purpose["fresh"] == 60
    asked = [judgement.item.id for judgement in store.judgements() if judgement.purpose == "gold"]
    assert len(asked) == len(set(asked)) == by_purpose["gold"]
    assert 12 <= by_purpose["gold"] <= 20  # 60 · .3/.7 would be 26: the golden ones run out
    assert store.progress().items == 60
    store.add_items(pairs(61)[60:])
    assert answer(store, "bob") is not None
    check_counts(store)


def test_without_a_share_gold_items_are_not_shown(store):
    store.add_items([Item.of("gold", ["good", "bad"], gold=Prefer(0))])
    assert store.assign("ada") is None


def test_own_items_are_shown_again(store):
    store.configure(repeat_share=0.5, repeat_gap=5)
    store.add_items(pairs(40))
    answer_rest(store, "ada", good)
    judgements = list(store.judgements())
    first = {judgement.item.id: turn for turn, judgement in enumerate(judgements) if judgement.purpose == "fresh"}
    again = [(judgement.item.id, turn) for turn, judgement in enumerate(judgements) if judgement.purpose == "repeat"]
    assert len(first) == 40
    assert 20 <= len(again) == len({item for item, _ in again})
    assert min(turn - first[item] for item, turn in again) >= 5
    assert all(judgement.answer == Prefer(0) for judgement in judgements)
    assert {row[0] for row in store._db.rows("SELECT answers FROM items")} == {1}  # a repeat is no second opinion
    check_counts(store)


# ---------------------------------------------------------------- skip, undo, once and only once


def test_what_is_skipped_goes_to_someone_else(store):
    store.add_items(pairs(1))
    assert answer(store, "ada", lambda task: Skip("cut off"))
    assert store.assign("ada") is None
    assert answer(store, "bob")
    (skip,) = store.skipped()
    assert (skip.answer, skip.annotator) == (Skip("cut off"), store.pseudonym("ada"))
    assert [judgement.annotator for judgement in store.judgements()] == [store.pseudonym("bob")]
    check_counts(store)


def test_undo_goes_back_step_by_step_and_deletes_nothing(store):
    store.add_items(pairs(5))
    first = answer(store, "ada", lambda task: Prefer(1, 0.5))
    second = answer(store, "ada", lambda task: Skip("why"))
    third = store.assign("ada")

    reopened = store.undo("ada", "u1")
    assert (reopened.id, reopened.completions, reopened.previous) == (second.id, second.completions, Skip("why"))
    reopened = store.undo("ada", "u2")
    assert (reopened.id, reopened.completions, reopened.previous) == (first.id, first.completions, Prefer(1, 0.5))
    assert store.undo("ada", "u3") is None
    assert list(store.judgements()) == []
    assert store.progress().answers == 0
    check_counts(store)

    assert [answer(store, "ada", good).id for _ in range(3)] == [first.id, second.id, third.id]
    kinds = [event.kind for event in store.events()]
    assert kinds == ["assign", "answer", "assign", "skip", "assign", "undo", "undo", "answer", "answer", "answer"]
    assert all(judgement.answer == Prefer(0) for judgement in store.judgements())
    assert store.undo("ada", "u4").id == third.id  # the last act, not the oldest task
    check_counts(store)


def test_an_undo_that_is_sent_twice_is_one(store):
    store.add_items(pairs(3))
    tasks = [answer(store, "ada") for _ in range(2)]
    assert store.undo("ada", "u").id == tasks[1].id
    assert store.undo("ada", "u").id == tasks[1].id
    assert len(list(store.judgements())) == 1


def test_a_submission_that_is_sent_twice_is_one(store):
    store.add_items(pairs(2))
    task = store.assign("ada")
    assert store.submit("ada", task.id, "id", Prefer(0, 1)) is True
    assert store.submit("ada", task.id, "id", Prefer(0, 1.0)) is False
    assert len(list(store.judgements())) == 1
    store.undo("ada", "u")
    assert store.submit("ada", task.id, "id", Prefer(0, 1)) is False  # the network was slow: it stays undone
    assert list(store.judgements()) == []
    assert store.submit("ada", task.id, "id2", Prefer(1)) is True
    assert [event.kind for event in store.events()] == ["assign", "answer", "undo", "answer"]


def test_a_submission_id_used_for_something_else_is_an_error(store):
    store.configure(overlap=2)
    store.add_items(pairs(3))
    task = answer(store, "ada", id="id")
    with pytest.raises(Conflict, match="submission 'id' was something else"):
        store.submit("ada", task.id, "id", Prefer(1))
    with pytest.raises(Conflict, match="was something else"):
        store.submit("ada", task.id, "id", Skip())
    other = store.assign("ada")
    with pytest.raises(Conflict, match="was something else"):
        store.submit("ada", other.id, "id", Prefer(0))
    with pytest.raises(Conflict, match="was no undo"):
        store.undo("ada", "id")
    with pytest.raises(Conflict, match="is answered already: undo that first"):
        store.submit("ada", task.id, "another", Prefer(1))
    store.undo("ada", "u")
    with pytest.raises(Conflict, match="was something else"):
        store.submit("ada", task.id, "u", Prefer(1))
    assert answer(store, "bob", id="id")  # an id is the annotator's own
    check_counts(store)


def test_a_task_is_its_annotators(store):
    store.add_items(pairs(1))
    task = store.assign("ada")
    for name in ("bob", "Ada"):
        with pytest.raises(UnknownTask, match="has no task"):
            store.submit(name, task.id, "s", Prefer(0))
    with pytest.raises(UnknownTask):
        store.submit("ada", "x' OR '1'='1", "s", Prefer(0))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("comparison", Rate(3)),
        ("comparison", Prefer(2)),
        ("comparison", "0"),
        ("rating", Rate(8)),
        ("rating", Rate(math.inf)),
        ("ranking", Rank((0, 1))),
        ("demonstration", Write("")),
        ("demonstration", Write("x" * 100_001)),
        ("demonstration", Skip("x" * 2_001)),
    ],
)
def test_a_bad_answer_changes_nothing(store, kind, bad):
    texts = {"comparison": ["a", "b"], "rating": ["a"], "ranking": ["a", "b", "c"], "demonstration": []}[kind]
    store.add_items([Item.of("p", texts)])
    task = store.assign("ada")
    before = store.latest
    with pytest.raises(FeedbackError):
        store.submit("ada", task.id, "s", bad)
    assert (store.latest, store.assign("ada")) == (before, task)


def test_names_and_ids_are_checked(store):
    store.add_items(pairs(1))
    for name, message in (("", "is empty"), (" ", "is empty"), (5, "got int"), ("a-" + "0" * 16, "is a pseudonym")):
        with pytest.raises(FeedbackError, match=message):
            store.assign(name)
    with pytest.raises(TooLong):
        store.assign("x" * 201)
    task = store.assign("ada")
    for id in ("", " ", None):
        with pytest.raises(FeedbackError, match="a submission's id"):
            store.submit("ada", task.id, id, Prefer(0))


def test_text_is_never_read_as_sql(store):
    name = "x'); DROP TABLE events; --"
    store.add_items([Item.of(name, [name, '"; DELETE FROM items; --\x00'])])
    task = answer(store, name, lambda task: Prefer(0), id=name)
    (judgement,) = store.judgements()
    assert task.prompt == judgement.item.prompt == name
    assert list(store.progress().annotators) == [name]


# ---------------------------------------------------------------- guidelines, settings, items


def test_a_judgement_bears_the_guidelines_it_was_made_under(store):
    store.add_items(pairs(4))
    assert store.guidelines().version == 0
    answer(store, "ada")
    open_task = store.assign("ada")
    assert store.set_guidelines("Prefer the shorter text.") == 1
    assert store.set_guidelines("Prefer the shorter text.") == 1
    shown = store.assign("ada")
    assert (shown.id, shown.guidelines) == (open_task.id, 1)
    assert store.set_guidelines("Prefer the longer text.") == 2
    store.submit("ada", shown.id, "s", Prefer(0))  # the page still showed version 1
    answer(store, "ada")
    assert [judgement.guidelines for judgement in store.judgements()] == [0, 1, 2]
    assert store.guidelines(1).text == "Prefer the shorter text."
    assert store.guidelines().text == "Prefer the longer text."
    with pytest.raises(FeedbackError, match="no guidelines of version 3"):
        store.guidelines(3)
    with pytest.raises(FeedbackError, match="are empty"):
        store.set_guidelines(" ")


def test_time_is_measured_from_the_opening(store, clock):
    store.add_items(pairs(2))
    task = store.assign("ada")
    clock.now += 12.5
    store.assign("ada")
    store.submit("ada", task.id, "s", Prefer(0))
    clock.now += 100
    store.undo("ada", "u")
    clock.now += 4
    store.submit("ada", task.id, "s2", Prefer(1))
    (judgement,) = store.judgements()
    assert judgement.seconds == 4
    assert judgement.created.timestamp() == clock.now
    assert store.share("ada").median_seconds == 4


def test_settings_are_the_files(store, store_path):
    store.configure(overlap=3, gold_share=0.1)
    assert store.configure(seed=7) == Settings(overlap=3, gold_share=0.1, seed=7)
    with FeedbackStore(store_path) as again:
        assert again.settings == Settings(overlap=3, gold_share=0.1, seed=7)
    with pytest.raises(FeedbackError, match="did you mean 'overlap'"):
        store.configure(overlaps=2)
    for wrong in ({"overlap": 0}, {"gold_share": 0.6, "repeat_share": 0.6}, {"seed": 0.5}, {"lease_minutes": 0}):
        with pytest.raises(FeedbackError):
            store.configure(**wrong)
    assert store.settings.seed == 7


def test_items_are_added_once_and_all_or_none(store):
    items = pairs(3)
    assert store.add_items(items) == 3
    assert store.add_items(items) == 0
    with pytest.raises(Conflict, match="another item"):
        store.add_items([Item.of("new", ["a"]), Item.of("other", ["a"], id=items[0].id)])
    assert list(store.items().values()) == items


def test_calls_in_a_transaction_are_one(store):
    store.add_items(pairs(3))

    def some_then_fail():
        with store.transaction():
            answer(store, "ada")
            with pytest.raises(Conflict):  # undone on its own: what stands around it is not
                store.add_items([Item.of("new", ["a"]), Item.of("other", ["a"], id=pairs(1)[0].id)])
            assert store.latest == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        some_then_fail()
    assert (store.latest, len(store.items())) == (0, 3)
    with store.transaction():
        answer(store, "ada")
    assert store.latest == 2


def test_progress_by_annotator(store, clock):
    store.configure(overlap=2)
    store.add_items(pairs(4))
    answer(store, "ada")
    answer(store, "ada", lambda task: Skip())
    store.assign("ada")
    share = store.progress().annotators["ada"]
    assert (share.answered, share.skipped, share.open, share.left) == (1, 1, 1, 1)
    assert share.pseudonym == store.pseudonym("ada") != "ada"
    nobody = store.share("eve")
    assert (nobody.answered, nobody.left, nobody.median_seconds) == (0, 4, None)
    assert list(store.progress().annotators) == ["ada"]


# ---------------------------------------------------------------- nothing changes afterwards


@pytest.mark.parametrize("statement", ["UPDATE events SET content = '{}'", "DELETE FROM events", "REPLACE INTO events"])
def test_events_stay(store, store_path, statement):
    """Even who opens the file with other tools must take the trigger away first."""
    store.add_items(pairs(2))
    answer(store, "ada")
    before = list(store.events())
    other = sqlite3.connect(store_path)
    if statement.startswith("REPLACE"):
        other.execute("PRAGMA recursive_triggers = ON")  # else a replaced row counts as not deleted
        statement = "REPLACE INTO events SELECT * FROM events"
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        other.execute(statement)
    other.close()
    assert list(store.events()) == before


def test_forgetting_leaves_no_trace_of_the_person(store, store_path):
    store.configure(overlap=2)
    store.add_items([Item.of(f"p{n}") for n in range(3)])
    for name in ("Ada Lovelace", "bob"):
        answer_rest(store, name, lambda task, name=name: Write(f"{name} was here"))
    answer(store, "Ada Lovelace")
    store.undo("Ada Lovelace", "u")
    pseudonym = store.pseudonym("Ada Lovelace")
    assert store.progress().complete == 2

    assert store.forget("Ada Lovelace") == 2
    left = b"".join(path.read_bytes() for path in store_path.parent.iterdir())
    assert b"bob was here" in left
    for trace in (b"Lovelace", pseudonym.encode()):
        assert trace not in left
    assert {judgement.annotator for judgement in store.judgements()} == {store.pseudonym("bob")}
    last = list(store.events())[-1]
    assert (last.kind, last.annotator, last.task, last.content) == ("forget", None, None, {"answers": 2})
    assert store.progress().answers == 3
    check_counts(store)
    assert answer(store, "cyd", lambda task: Write("anew"))  # the items wait for another one
    with pytest.raises(FeedbackError, match="no annotator is called 'bo'; did you mean 'bob'"):
        store.forget("bo")
    assert store.forget(store.pseudonym("bob")) == 3
    with store.transaction(), pytest.raises(FeedbackError, match="outside of a transaction"):
        store.forget("cyd")


def test_numbers_of_the_forgotten_are_not_used_again(store):
    store.add_items(pairs(2))
    task = answer(store, "ada")
    store.forget("ada")
    with pytest.raises(UnknownTask):
        store.submit("ada", task.id, "s", Prefer(0))
    assert store.assign("ada").id != task.id


# ---------------------------------------------------------------- the file


def test_a_store_is_made_only_when_asked(store_path):
    with pytest.raises(FileNotFoundError, match="create=True"):
        FeedbackStore(store_path)
    assert not store_path.exists()
    with pytest.raises(FeedbackError, match="cannot be opened"):
        FeedbackStore(store_path / "no" / "folder", create=True)


def test_a_newer_store_is_refused(store, store_path):
    store.close()
    with sqlite3.connect(store_path) as other:
        other.execute(f"PRAGMA user_version = {VERSION + 1}")
    other.close()
    with pytest.raises(FeedbackError, match=f"tables of version {VERSION + 1}, this one knows {VERSION}.*update"):
        FeedbackStore(store_path)


def test_another_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE events (x)")
    other.close()
    before = path.read_bytes()
    for create in (False, True):
        with pytest.raises(FeedbackError, match="no feedback store"):
            FeedbackStore(path, create=create)
    assert path.read_bytes() == before
    path.write_text("prompt,completion\n" * 100)
    with pytest.raises(FeedbackError, match="cannot be opened as a feedback store: file is not a database"):
        FeedbackStore(path)


def test_what_is_committed_is_on_the_disk(store):
    """Kill -9 leaves what the system has; to outlive a power cut, a commit must wait for the disk."""
    assert store._db.value("PRAGMA journal_mode") == "wal"
    assert store._db.value("PRAGMA synchronous") == 2
    assert store._db.value("PRAGMA application_id") == APPLICATION


def test_the_secret_is_the_files(store, store_path, tmp_path):
    with FeedbackStore(store_path) as again:
        assert again.pseudonym("ada") == store.pseudonym("ada")
    with FeedbackStore(tmp_path / "other.db", create=True) as other:
        assert other.pseudonym("ada") != store.pseudonym("ada")
    assert store.pseudonym("ada") != store.pseudonym("Ada")
