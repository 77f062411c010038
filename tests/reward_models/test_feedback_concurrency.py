"""Many annotators at once, in threads and in processes, and a process that is killed while it writes."""

import os
import signal
import threading
import time
import warnings
from collections import Counter

import pytest

from reward_models.feedback import FeedbackError, FeedbackStore, Item, Prefer
from tests.reward_models.test_feedback_store import check_counts

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def pairs(count):
    return [Item.of(f"prompt {n}", [f"a {n}", f"b {n}"]) for n in range(count)]


def fork(function):
    """Run a function in a process of its own; its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads' locks: the child uses none of theirs
        child = os.fork()
    if child:
        return child
    try:
        function()
        os._exit(0)
    finally:
        os._exit(1)


def test_fifty_annotators_at_once(store_path):
    """Each sends every submission twice, from two threads, until all is judged: none lost, none doubled."""
    people, items = 50, 500
    with FeedbackStore(store_path, create=True) as store:
        store.configure(overlap=2)
        store.add_items(pairs(items))
        failed, given, sent = [], Counter(), []

        def annotate(name):
            try:
                while (task := store.assign(name)) is not None:
                    given[name] += 1
                    submission = f"{name}:{given[name]}"
                    twin = threading.Thread(target=send, args=(name, task, submission))
                    twin.start()
                    send(name, task, submission)
                    twin.join()
            except BaseException as error:
                failed.append(error)

        def send(name, task, id):
            sent.append((name, store.submit(name, task.id, id, Prefer(0))))

        threads = [threading.Thread(target=annotate, args=(f"annotator {n}",)) for n in range(people)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        judgements = list(store.judgements())
        assert Counter(name for name, is_new in sent if is_new) == given
        assert len(sent) == 2 * len(judgements)
        assert Counter(judgement.annotator for judgement in judgements) == {
            store.pseudonym(name): count for name, count in given.items()
        }
        assert len({(judgement.annotator, judgement.item.id) for judgement in judgements}) == len(judgements)
        assert Counter(judgement.item.id for judgement in judgements) == {item.id: 2 for item in pairs(items)}
        check_counts(store)


@needs_fork
def test_processes_share_a_file(store_path):
    """They also make it together."""

    def annotate(name):
        with FeedbackStore(store_path, create=True) as store:
            store.add_items(pairs(20))
            for turn in range(20):
                task = store.assign(name)
                if task is not None:
                    assert store.submit(name, task.id, str(turn), Prefer(0))

    children = [fork(lambda name=name: annotate(name)) for name in ("ada", "bob", "cyd")]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    with FeedbackStore(store_path) as store:
        judgements = list(store.judgements())
        assert len({judgement.item.id for judgement in judgements}) == len(judgements) == 20
        check_counts(store)


@needs_fork
def test_every_acknowledged_judgement_outlives_a_kill(store_path):
    with FeedbackStore(store_path, create=True) as store:
        store.add_items(pairs(5000))
    reading, writing = os.pipe()

    def annotate():
        store = FeedbackStore(store_path)
        turn = 0
        while (task := store.assign("ada")) is not None:
            store.submit("ada", task.id, str(turn), Prefer(turn % 2))
            os.write(writing, f"{task.id} {turn % 2}\n".encode())
            turn += 1

    child = fork(annotate)
    os.close(writing)
    heard = b""
    while heard.count(b"\n") < 30:
        heard += os.read(reading, 1 << 16)
    time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    while more := os.read(reading, 1 << 16):
        heard += more
    os.close(reading)
    acknowledged = dict(line.split() for line in heard.decode().splitlines())
    assert len(acknowledged) >= 30

    with FeedbackStore(store_path) as store:
        assert store._db.value("PRAGMA integrity_check") == "ok"
        found = {event.task: event for event in store.events() if event.kind == "answer"}
        shown = {event.task: event.content["shown"] for event in store.events() if event.kind == "assign"}
        for task, place in acknowledged.items():
            assert found[task].content["preferred"] == shown[task][int(place)]
        assert len(found) - len(acknowledged) in (0, 1)  # one may have been written and not told
        check_counts(store)
        assert store.assign("ada") is not None


@needs_fork
def test_a_store_is_not_carried_into_another_process(store_path):
    with FeedbackStore(store_path, create=True) as store:

        def use():
            with pytest.raises(FeedbackError, match="opened in another process"):
                store.assign("ada")

        assert os.waitpid(fork(use), 0)[1] == 0
