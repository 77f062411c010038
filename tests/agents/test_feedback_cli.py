"""``textgen feedback``: items in, judgements out."""

import json
import re
import shlex
import threading
import urllib.request

import pytest

from agents.cli import main
from reward_models.feedback import FeedbackStore, Prefer, Settings
from reward_models.preference import read_preferences
from tests import snippets

COMMANDS = [line for line in snippets.commands("docs/feedback.md") if line.startswith("textgen ")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    items = [{"prompt": f"p{n}", "completions": [f"a{n}", f"b{n}"]} for n in range(12)]
    write(tmp_path / "items.jsonl", items)
    (tmp_path / "guidelines.txt").write_text("Be kind.", encoding="utf-8")
    return tmp_path


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def annotate(names=("ada", "bob")):
    with FeedbackStore("feedback.db") as store:
        for name in names:
            while (task := store.assign(name)) is not None:
                store.submit(name, task.id, task.id, Prefer(min((0, 1), key=lambda place: task.completions[place])))


def test_the_commands_of_the_page(workplace, capsys, monkeypatch):
    """In their order, with annotators in between."""
    named = ["add", "serve", "progress", "agreement", "export", "import", "forget"]
    assert [line.split()[2] for line in COMMANDS] == named
    monkeypatch.setattr("reward_models.feedback.server.run", lambda app, listener: None)
    shown = {}
    for line in COMMANDS:
        words = shlex.split(line)[1:]
        words += ["--port", "0"] if "serve" in words else []  # the usual one may be taken
        assert main(words) == 0, capsys.readouterr().err
        shown[words[1]] = capsys.readouterr().out
        if words[1] == "add":
            annotate()
    assert "12 new, 0 were there" in shown["add"]
    assert "version 1" in shown["add"]
    assert "overlap 2" in shown["add"]
    assert re.search(r"^annotator +http://127\.0\.0\.1:\d+/\?token=[\w-]{43}$", shown["serve"], re.MULTILINE)
    assert re.search(r"^overview +http://127\.0\.0\.1:\d+/overview\?token=[\w-]{43}$", shown["serve"], re.MULTILINE)
    assert "12 of 12 complete" in shown["progress"]
    assert "ada (a-" in shown["progress"]
    assert "alpha         1.000 [1.000, 1.000]" in shown["agreement"]
    assert "the text shown first preferred: " in shown["agreement"]
    assert "comparisons.train.jsonl: " in shown["export"]
    assert "forgotten, with 12 answers" in shown["forget"]
    sides = [read_preferences(f"preferences/comparisons.{side}.jsonl") for side in ("train", "validation")]
    assert sum(map(len, sides)) == 24
    assert f"{len(sides[0])} new, 0 were there" in shown["import"]
    assert all(pair.chosen.startswith("a") for side in sides for pair in side)


def test_what_is_not_given_stays_as_it_is(workplace, capsys):
    assert main(shlex.split("feedback add feedback.db --items items.jsonl --overlap 3 --seed 5")) == 0
    assert main(shlex.split("feedback add feedback.db --items items.jsonl --gold-share 0.1")) == 0
    assert "0 new, 12 were there" in capsys.readouterr().out
    with FeedbackStore("feedback.db") as store:
        assert store.settings == Settings(overlap=3, seed=5, gold_share=0.1)
        assert store.guidelines().version == 0


def test_the_page_is_served(workplace, capsys, monkeypatch):
    """Until it is interrupted; each annotator has a link."""
    monkeypatch.setattr("reward_models.feedback.server.run", visited := Visit())
    assert main(shlex.split("feedback add feedback.db --items items.jsonl")) == 0
    assert main(shlex.split("feedback serve feedback.db --port 0 --annotator ada --annotator bob")) == 0
    said = capsys.readouterr()
    assert "warning" not in said.err
    links = dict(line.split() for line in said.out.splitlines() if "token=" in line)
    assert list(links) == ["ada", "bob", "overview"]
    assert len(set(links.values())) == 3
    assert visited.page.startswith("<!doctype html>")


class Visit:
    """In place of serving for ever: one request of the page's style, and the end."""

    page = ""

    def __call__(self, app, listener):
        import uvicorn

        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        try:
            urllib.request.urlopen(address, timeout=30)
        except urllib.error.HTTPError as locked:
            with locked:
                self.page = locked.read().decode()
        server.should_exit = True
        thread.join()


def test_a_page_for_others_is_warned_of(workplace, capsys, monkeypatch):
    monkeypatch.setattr("reward_models.feedback.server.run", lambda app, listener: None)
    with FeedbackStore("empty.db", create=True):
        pass
    assert main(shlex.split("feedback serve empty.db --port 0 --host 0.0.0.0 --url http://192.168.1.5")) == 0
    said = capsys.readouterr()
    assert "warning: other machines can reach http://192.168.1.5/, and what is sent is not encrypted" in said.err
    assert "warning: 'empty.db' has no items yet" in said.err
    assert "http://192.168.1.5/?token=" in said.out
    assert main(shlex.split("feedback serve empty.db --port 0 --host 0.0.0.0 --url https://192.168.1.5")) == 0
    assert "not encrypted" not in capsys.readouterr().err


def test_export_for_a_spreadsheet(workplace, capsys):
    assert main(shlex.split("feedback add feedback.db --items items.jsonl")) == 0
    annotate(["ada"])
    assert main(shlex.split("feedback export feedback.db --output out --format csv")) == 0
    assert (workplace / "out" / "comparisons.csv").read_text(encoding="utf-8").startswith("prompt,chosen,rejected,")
    assert main(shlex.split("feedback agreement feedback.db")) == 0
    assert "the text shown first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("add feedback.db", "nothing to do: say --items"),
        ("add feedback.db --items none.jsonl", "none.jsonl"),
        ("add feedback.db --items guidelines.txt", "guidelines.txt, line 1: not valid JSON"),
        ("add feedback.db --items items.jsonl --overlap 0", "overlap and repeat_gap are 1 or more"),
        ("add feedback.db --items items.jsonl --overlaps 2", "did you mean '--overlap'"),
        ("add feedback.db --items items.jsonl --kind rank", "did you mean 'ranking'"),
        ("add feedback.db --items items.jsonl --kind rating", "line 1: item"),
        ("add items.jsonl --items items.jsonl", "cannot be opened as a feedback store"),
        ("export none.db --output out", "there is no feedback store 'none.db'"),
        ("progress none.db", "textgen feedback add"),
        ("serve none.db", "there is no feedback store 'none.db'"),
        ("serve none.db --host 0.0.0.0", "name the one that annotators will use"),
        ("serve none.db --url here", "a URL starts with http"),
        ("serve none.db --annotator ' '", "an annotator's name is empty"),
        ("import feedback.db --data none.jsonl", "there is no file 'none.jsonl'"),
        ("import feedback.db --data items.jsonl", "items.jsonl, line 1: one of rating, chosen"),
    ],
)
def test_bad_input_is_refused(workplace, capsys, arguments, message):
    assert main(["feedback", *shlex.split(arguments)]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_store(workplace, capsys):
    assert main(shlex.split("feedback add feedback.db --items items.jsonl")) == 0
    assert main(shlex.split("feedback agreement feedback.db")) == 0
    assert "no item has two answers" in capsys.readouterr().out
    assert main(shlex.split("feedback export feedback.db --output out")) == 2
    assert "there are no judgements to write" in capsys.readouterr().err
    assert main(shlex.split("feedback forget feedback.db ada")) == 2
    assert "no annotator is called 'ada'" in capsys.readouterr().err
