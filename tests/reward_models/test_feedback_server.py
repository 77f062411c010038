"""The page's server: every route, every refusal, and many annotators at once on one that is killed meanwhile."""

import http.client
import json
import os
import re
import signal
import threading
import time
import warnings
from collections import Counter
from contextlib import contextmanager

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx2")

from starlette.testclient import TestClient

from reward_models.feedback import FeedbackError, FeedbackStore, Item, Prefer, Rate, server
from reward_models.feedback.security import HEADERS, Access, Session, Site
from reward_models.feedback.server import MAX_BODY, create_app, listening, run
from tests.reward_models.test_feedback_store import check_counts
from tests.test_architecture import imported

ORIGIN = "http://127.0.0.1:8765"
HOSTILE = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "long" * 20_000,
]


def pairs(count):
    return [Item.of(f"prompt {n}", [f"good {n}", f"bad {n}"], sources=["ppo", "sft"]) for n in range(count)]


@pytest.fixture
def store(store_path):
    with FeedbackStore(store_path, create=True) as store:
        store.set_guidelines("Be kind.")
        store.add_items(pairs(6))
        yield store


@pytest.fixture
def access():
    return Access()


def token(access, role="annotator", invited=None):
    return next(
        token for token, door in access.tokens.items() if door.role == role and (door.invited in (None, invited))
    )


class Client(TestClient):
    """A browser's own requests: Origin, and the CSRF token that the last reply gave."""

    csrf = ""

    def ask(self, path, body=None, **headers):
        reply = self.post_raw(path, json.dumps({} if body is None else body), **headers)
        self.csrf = reply.json().get("csrf", self.csrf)
        return reply

    def post_raw(self, path, content, **headers):
        headers = {"Origin": ORIGIN, "X-CSRF-Token": self.csrf, "Content-Type": "application/json", **headers}
        return self.post(f"/api/{path}", content=content, headers=headers)

    def come_in(self, token):
        assert self.get("/", params={"token": token}).status_code == 200
        self.csrf = self.get("/api/session").json()["csrf"]
        return self

    def sign_in(self, name):
        reply = self.ask("sign-in", {"name": name})
        assert reply.status_code == 200, reply.text
        return reply.json()


@pytest.fixture
def browser(store, access):
    app = create_app(store, access)
    return lambda site=None: Client(app if site is None else create_app(store, access, site), base_url=ORIGIN)


@pytest.fixture
def client(browser, access):
    return browser().come_in(token(access))


@pytest.fixture
def ada(client):
    client.task = client.sign_in("ada")["task"]
    return client


def said(reply):
    return reply.status_code, reply.json()["error"]


# ---------------------------------------------------------------- the routes


def test_the_link_gives_a_session_that_scripts_cannot_read(browser, access):
    client = browser()
    assert client.get("/").status_code == 401
    reply = client.get("/", params={"token": token(access)}, follow_redirects=False)
    assert reply.status_code == 200  # no redirect: browsers would not send the cookie after one from another site
    assert 'http-equiv="refresh" content="0;url=./"' in reply.text
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    assert "max-age" not in cookie  # gone with the browser
    assert token(access) not in reply.text + cookie
    assert 'src="page.js"' in client.get("/").text
    assert client.get("/api/session").json().keys() == {"name", "invited", "csrf"}


def test_judging(store, ada):
    assert ada.task["kind"] == "comparison"
    assert set(ada.task) == {"id", "kind", "prompt", "completions", "scale", "guidelines", "previous"}
    assert ada.get("/api/guidelines/1").json() == {"version": 1, "text": "Be kind."}
    body = {"task": ada.task["id"], "submission": "s-1", "answer": {"preferred": 1}}
    state = ada.ask("answer", body).json()
    assert state["recorded"] is True
    assert state["share"] == {"answered": 1, "skipped": 0, "left": 4}
    assert state["task"] != ada.task
    assert state["task"] == ada.ask("task").json()["task"]
    assert ada.ask("answer", body).json() == {**state, "recorded": False}  # sent again
    (judgement,) = store.judgements()
    assert judgement.item.completions[judgement.answer.preferred] == ada.task["completions"][1]

    undone = ada.ask("undo", {"submission": "u-1"}).json()
    assert undone["undone"] is True
    assert undone["task"] == {**ada.task, "previous": {"preferred": 1, "margin": 0.0}}
    assert ada.ask("undo", {"submission": "u-1"}).json() == undone
    assert list(store.judgements()) == []
    assert ada.ask("answer", {**body, "submission": "s-2", "answer": {"skip": "cut off"}}).json()["recorded"]
    assert [skip.answer.reason for skip in store.skipped()] == ["cut off"]


def test_the_end_and_nothing_to_undo(store, ada):
    assert ada.ask("undo", {"submission": "u-1"}).json()["undone"] is False
    task, turn = ada.task, 0
    while task is not None:
        turn += 1
        answer = {"task": task["id"], "submission": f"s-{turn}", "answer": {"tie": True}}
        task = ada.ask("answer", answer).json()["task"]
    assert turn == 6
    assert ada.ask("task").json() == {"task": None, "share": {"answered": 6, "skipped": 0, "left": 0}}


def test_every_kind_of_answer(store, ada):
    with store.transaction():
        store.configure(overlap=2)
        store.add_items([Item.of("r", ["one"]), Item.of("k", list("abc")), Item.of("d")])
    answers = {
        "rating": {"rating": 5},
        "comparison": {"tie": True},
        "ranking": {"ranking": [2, 0, 1]},
        "demonstration": {"text": "mine"},
    }
    task = ada.task
    while task is not None:
        reply = ada.ask("answer", {"task": task["id"], "submission": task["id"], "answer": answers[task["kind"]]})
        task = reply.json()["task"]
    assert {judgement.item.kind for judgement in store.judgements()} == set(answers)


def test_signing_out_and_in_again(ada):
    csrf, task = ada.csrf, ada.task
    reply = ada.ask("sign-out").json()
    assert reply["name"] is None
    assert ada.csrf != csrf
    assert said(ada.ask("task")) == (403, "sign in first")
    assert ada.sign_in("  ada ")["task"] == task
    assert ada.get("/api/session").json()["name"] == "ada"


def test_being_forgotten(store, ada):
    ada.ask("answer", {"task": ada.task["id"], "submission": "s", "answer": {"tie": True}})
    reply = ada.ask("forget").json()
    assert (reply["answers"], reply["name"]) == (1, None)
    assert list(store.judgements()) == []
    assert "ada" not in store.progress().annotators
    assert said(ada.ask("task")) == (403, "sign in first")
    assert b"ada" not in store.path.read_bytes()
    ada.sign_in("ada")
    store.forget("ada")
    assert ada.ask("forget").json()["answers"] == 0  # forgotten already, by the command line


def test_a_link_of_ones_own(store):
    access = Access(["Zoe\u0308", "bob", "bob"])
    assert [door.invited for door in access.tokens.values()] == ["Zo\u00eb", "bob", None]
    assert list(access.links("http://x/")) == ["Zo\u00eb", "bob", "overview"]
    assert access.links("http://x/")["overview"] == f"http://x/overview?token={token(access, 'overview')}"
    for bad in (" ", "x" * 201):
        with pytest.raises(FeedbackError, match="an annotator's name"):
            Access([bad])
    client = Client(create_app(store, access), base_url=ORIGIN).come_in(token(access, invited="Zo\u00eb"))
    assert client.get("/api/session").json()["invited"] == "Zo\u00eb"
    assert said(client.ask("sign-in", {"name": "bob"})) == (403, "this link is for 'Zo\u00eb': sign in by that name")
    client.sign_in("Zoe\u0308")
    client.come_in(token(access, invited="Zo\u00eb"))
    assert client.get("/api/session").json()["name"] == "Zo\u00eb"  # the same link: still signed in
    client.come_in(token(access, invited="bob"))
    assert client.get("/api/session").json() == {"name": None, "invited": "bob", "csrf": client.csrf}


def test_the_overview_is_for_another_link(store, browser, access, ada):
    for path in ("/overview", "/overview/figures"):
        assert ada.get(path).status_code == 401
    assert ada.get("/overview", params={"token": token(access)}).status_code == 403
    assert ada.get("/", params={"token": token(access, "overview")}).status_code == 403
    assert ada.get("/overview", params={"token": token(access, "overview")}).status_code == 200
    assert 'src="overview.js"' in ada.get("/overview").text
    assert ada.ask("task").json()["task"] == ada.task  # one browser can have both
    other = browser()
    other.get("/overview", params={"token": token(access, "overview")})
    assert other.get("/").status_code == 401
    assert other.get("/api/session").status_code == 401


def test_the_overview_is_live(store, access, ada, monkeypatch):
    ada.get("/overview", params={"token": token(access, "overview")})
    found = ada.get("/overview/figures").json()
    assert found["agreement"] == {
        "kinds": {},
        "gold": {},
        "repeats": {},
        "first_shown": {"hits": 0, "total": 0, "share": None},
    }
    assert found["progress"]["wanted"] == 6
    assert found["guidelines"] == {"version": 1, "text": "Be kind."}
    store.configure(overlap=2, gold_share=1.0)
    store.add_items([Item.of("known", ["one"], gold=Rate(7.0))])
    for name in ("ada", "bob"):
        while (task := store.assign(name)) is not None:
            good = [text.startswith("good") for text in task.completions]
            store.submit(name, task.id, task.id, Prefer(good.index(True)) if any(good) else Rate(7.0))
    while not (found := ada.get("/overview/figures").json())["agreement"]["kinds"]:
        time.sleep(0.05)  # it is measured a tenth of the time
    figures = found["agreement"]["kinds"]["comparison"]["figures"]
    assert set(figures) == {"raw", "alpha", "fleiss_kappa", "cohen_kappa"}
    assert figures["alpha"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert found["agreement"]["gold"]["bob"]["hits"] == 1
    assert set(found["progress"]["annotators"]) == {"ada", "bob"}

    def fail(judgements):
        raise AssertionError("nobody has said anything: nothing is to be measured")

    monkeypatch.setattr(server, "measure_agreement", fail)
    assert ada.get("/overview/figures").json() == found


def test_everything_has_the_headers(ada, browser, access):
    app = browser()
    replies = [ada.get(path) for path in ("/", "/page.js", "/style.css", "/icon.svg", "/api/session", "/none")]
    replies += [ada.ask("task"), ada.ask("none"), app.get("/"), app.get("/", headers={"Host": "evil.example"})]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 200, 200, 404, 200, 404, 401, 403]
    for reply in replies:
        assert {name: reply.headers[name] for name in HEADERS} == HEADERS
        assert "server" not in reply.headers
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert HEADERS["Cache-Control"] == "no-store"


def test_the_page_wants_nothing_from_elsewhere(ada):
    """And has nothing that its policy forbids: scripts and styles are files."""
    files = [path for path in server._PAGE.iterdir() if path.suffix != ".svg"]
    assert len(files) >= 7
    for path in files:
        content = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?:src|href|url|from|import)\W+(?:https?:)?//", content), path.name
        assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", content), path.name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", content), path.name
        if path.suffix != ".html":
            assert ada.get(f"/{path.name}").text == content


def test_the_server_needs_no_torch():
    files = list(server._PAGE.parent.glob("*.py"))
    assert server._PAGE.parent / "server.py" in files
    for path in files:
        rooms = {room for _, room in imported(path.read_text(encoding="utf-8"))}
        assert not rooms & {"torch", "transformers", "stable_baselines3", "agents"}, path.name


def test_texts_are_text(store, ada):
    with store.transaction():
        store.configure(overlap=2)
        store.add_items([Item.of(prompt, HOSTILE, kind="ranking") for prompt in HOSTILE])
    task, seen = ada.task, 0
    while task is not None:
        if task["kind"] == "ranking":
            seen += 1
            assert sorted(task["completions"]) == sorted(HOSTILE)
            reply = ada.ask("answer", {"task": task["id"], "submission": task["id"], "answer": {"skip": HOSTILE[0]}})
        else:
            reply = ada.ask("answer", {"task": task["id"], "submission": task["id"], "answer": {"tie": True}})
        assert reply.headers["content-type"] == "application/json"
        task = reply.json()["task"]
    assert seen == len(HOSTILE)
    assert {skip.answer.reason for skip in store.skipped()} == {HOSTILE[0]}
    assert ada.sign_in(HOSTILE[1])["name"] == HOSTILE[1]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", ["", "x", "\u00e4", "\udc80", "A" * 43])
def test_a_wrong_token(browser, access, bad):
    assert access.enter(bad) is None
    client = browser()
    assert client.get("/", params={"token": bad.encode("utf-8", "surrogatepass")}).status_code == 403
    assert not client.cookies


def test_a_forged_session(access, store):
    real = access.seal(Session("annotator", name="ada"))
    assert access.unseal(real) == Session("annotator", name="ada")
    forged = Access().seal(Session("annotator", name="ada"))
    content, signature = real.split(".")
    for cookie in (forged, content, f"{content}.", f"{content[:-2]}.{signature}", f".{signature}", "", "\u00e4.\u00e4"):
        assert access.unseal(cookie) is None
    client = Client(create_app(store, access), base_url=ORIGIN, cookies={"textgen_annotator_8765": forged})
    assert client.get("/api/session").status_code == 401
    assert said(client.ask("task"))[0] == 401


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example:8765", "127.0.0.1@evil.example", "127.0.0.1/", "", "[::1", "0.0.0.0"],
)
def test_a_wrong_host(ada, host):
    for path in ("/", "/page.js", "/api/session"):
        assert said(ada.get(path, headers={"Host": host}))[0] == 403
    assert said(ada.ask("task", Host=host, Origin=f"http://{host}"))[0] == 403


def test_other_names_of_this_machine(ada):
    """A tunnel's port, say."""
    for host in ("localhost:9000", "127.0.0.1", "[::1]:8765", "LOCALHOST"):
        assert ada.get("/page.js", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["", "null", "https://127.0.0.1:8765", "http://127.0.0.1", "http://localhost:8765", "http://evil"]
)
def test_a_foreign_origin(store, ada, origin):
    before = store.latest
    body = {"task": ada.task["id"], "submission": "s", "answer": {"tie": True}}
    assert said(ada.ask("answer", body, Origin=origin)) == (403, "the request comes from another website")
    assert store.latest == before


def test_no_csrf_token(browser, access, ada):
    body = {"task": ada.task["id"], "submission": "s", "answer": {"tie": True}}
    other = browser().come_in(token(access))
    other.sign_in("ada")
    for csrf in ("", "x", other.csrf, "\u00e4".encode()):
        status, message = said(ada.ask("answer", body, **{"X-CSRF-Token": csrf}))
        assert (status, "reload the page" in message) == (403, True)
    assert ada.ask("answer", body).status_code == 200


def test_no_session(browser, access):
    for path in ("session", "guidelines/1"):
        assert browser().get(f"/api/{path}").status_code == 401
    for path in ("task", "answer", "undo", "sign-in", "sign-out", "forget", "none"):
        assert said(browser().ask(path)) == (401, "there is no session: open the link that was printed")
    for path in ("task", "answer", "undo", "forget"):
        assert said(browser().come_in(token(access)).ask(path)) == (403, "sign in first")


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"task": "none"}, 404, "'ada' has no task 'none'"),
        ({"task": 5}, 400, "field 'task': expected a string"),
        ({"task": "\ud800"}, 400, "lone surrogate"),
        ({"task": "x" * 201}, 413, "the limit is 200"),
        ({"submission": " "}, 400, "id is empty"),
        ({"submission": ["s"]}, 400, "field 'submission': expected a string"),
        ({"more": 1}, 400, "fields task, submission, answer are wanted"),
        ({"answer": None}, 400, "expected an object"),
        ({"answer": {}}, 400, "got nothing"),
        ({"answer": {"rating": 3}}, 400, "answered by Prefer or Skip"),
        ({"answer": {"preferred": 2}}, 400, "preferred is 0, 1"),
        ({"answer": {"preferred": 0, "margin": 10**400}}, 400, "expected a finite number"),
        ({"answer": {"preferred": 0, "margin": float("nan")}}, 400, "expected a finite number"),
        ({"answer": {"skip": "x" * 2001}}, 413, "the limit is 2000"),
    ],
)
def test_a_bad_answer(store, ada, change, status, message):
    before = store.latest
    body = {"task": ada.task["id"], "submission": "s", "answer": {"tie": True}, **change}
    found = said(ada.ask("answer", body))
    assert found[0] == status
    assert message in found[1]
    assert store.latest == before


def test_what_contradicts_the_store(ada):
    body = {"task": ada.task["id"], "submission": "s", "answer": {"tie": True}}
    ada.ask("answer", body)
    assert said(ada.ask("answer", {**body, "submission": "t"}))[0] == 409
    assert said(ada.ask("answer", {**body, "answer": {"preferred": 0}}))[0] == 409
    assert said(ada.ask("undo", {"submission": "s"}))[0] == 409
    task, other = ada.ask("task").json()["task"], ada.sign_in("bob")
    assert said(ada.ask("answer", {**body, "task": task["id"]}))[0] == 404  # ada's, and this is bob now
    assert other["task"]["id"] != task["id"]


def test_bad_bodies(ada):
    assert said(ada.post_raw("answer", "{}", **{"Content-Type": "text/plain"})) == (
        415,
        "the body must be application/json",
    )
    for content in ("", "{", "[" * 100_000, '{"task": 1' + "0" * 5000 + "}", b"\xff"):
        assert said(ada.post_raw("answer", content))[0] == 400
    for content in ("[]", "null", '"x"'):
        assert "must be an object" in said(ada.post_raw("answer", content))[1]
    assert said(ada.post_raw("answer", " " * (MAX_BODY + 1)))[0] == 413
    assert said(ada.post_raw("answer", (b" " * 65536 for _ in range(17))))[0] == 413  # no Content-Length to believe
    assert said(ada.post_raw("answer", " " * MAX_BODY))[0] == 400
    assert ada.get("/api/answer", headers={"Origin": ORIGIN}).status_code == 405
    for path in ("/api/guidelines/9", "/api/guidelines/-1", "/api/guidelines/x", "/../server.py", "/%2e%2e/server.py"):
        assert ada.get(path).status_code in (400, 404)


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a-0123456789abcdef", "\ud800", 5])
def test_bad_names(store, client, name):
    status, message = said(client.ask("sign-in", {"name": name}))
    assert status == (413 if len(str(name)) > 200 else 400)
    assert message
    assert client.get("/api/session").json()["name"] is None
    assert not store.progress().annotators


def test_a_failure_inside_tells_nothing(store, access, ada, monkeypatch):
    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(FeedbackStore, "share", fail)
    client = Client(create_app(store, access), base_url=ORIGIN, raise_server_exceptions=False).come_in(token(access))
    reply = client.ask("sign-in", {"name": "ada"})
    assert said(reply) == (500, "the server has failed; its log says why")
    assert reply.headers["Cache-Control"] == "no-store"


def test_a_busy_store_is_asked_again_later(store, store_path, ada, monkeypatch):
    monkeypatch.setattr("reward_models.feedback.database.BUSY_SECONDS", 0)
    with FeedbackStore(store_path) as other, FeedbackStore(store_path) as late:
        client = Client(create_app(late, access := Access()), base_url=ORIGIN).come_in(token(access))
        with other.transaction():
            assert said(client.ask("sign-in", {"name": "bob"}))[0] == 503
        assert client.sign_in("bob")["task"]


def test_websockets_are_closed(ada):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), ada.websocket_connect("/"):
        pass


# ---------------------------------------------------------------- where the page is


def test_sites():
    assert Site().address(8000) == "http://127.0.0.1:8000/"
    assert Site("::1").address(8000) == "http://[::1]:8000/"
    assert [Site(host).local for host in ("127.0.0.1", "localhost", "::1", "192.168.1.5")] == [True, True, True, False]
    network = Site("192.168.1.5")
    assert network.knows("192.168.1.5:8000")
    assert not network.knows("localhost:8000")
    proxied = Site(url="https://feedback.example.org/study/")
    assert proxied.address(8000) == "https://feedback.example.org/study/"
    assert proxied.knows("feedback.example.org")
    assert proxied.knows("127.0.0.1:8000")
    assert proxied.is_own("https://feedback.example.org", "127.0.0.1:8000")
    assert not proxied.is_own("http://feedback.example.org", "127.0.0.1:8000")
    assert Site("0.0.0.0", "http://192.168.1.5:8000").knows("192.168.1.5:8000")
    for bad in ("feedback.example.org", "ftp://x", "https://"):
        with pytest.raises(ValueError, match="starts with http"):
            Site(url=bad)
    for everywhere in ("0.0.0.0", "::"):
        with pytest.raises(ValueError, match="name the one that annotators will use"):
            Site(everywhere)


def test_behind_tls_cookies_are_secure(browser, access):
    reply = browser(Site(url="https://feedback.example.org")).get("/", params={"token": token(access)})
    assert "secure" in reply.headers["set-cookie"].lower()


def test_a_taken_port():
    with listening("127.0.0.1", 0) as taken, pytest.raises(OSError, match="--port 0 takes a free port"):  # noqa: SIM117
        with listening("127.0.0.1", taken.getsockname()[1]):
            pass
    with pytest.raises(OSError, match="port 99999"), listening("127.0.0.1", 99999):
        pass


# ---------------------------------------------------------------- many at once, and a kill

PEOPLE, EACH = 50, 20


class Person:
    """A browser over the network: sends each submission twice, and again until the server has confirmed it."""

    def __init__(self, name, port, link, sent):
        self.name, self.port, self.link, self.sent = name, port, link, sent
        self.headers = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json"}
        self.connection = None

    def request(self, method, path, body=None):
        while True:
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                self.connection.request(method, path, None if body is None else json.dumps(body), self.headers)
                reply = self.connection.getresponse()
                content = reply.read()
            except (OSError, http.client.HTTPException):  # the server is down
                self.connection.close()
                self.connection = None
                time.sleep(0.1)
                continue
            if "set-cookie" in reply.headers:
                self.headers["Cookie"] = reply.headers["set-cookie"].partition(";")[0]
            if path.startswith("/?"):
                return None
            assert reply.status == 200, content
            found = json.loads(content)
            self.headers["X-CSRF-Token"] = found.get("csrf", self.headers.get("X-CSRF-Token"))
            return found

    def judge(self):
        self.request("GET", f"/?token={self.link}")
        self.request("GET", "/api/session")
        task = self.request("POST", "/api/sign-in", {"name": self.name})["task"]
        for turn in range(EACH):
            body = {"task": task["id"], "submission": f"s-{turn}", "answer": {"preferred": turn % 2}}
            self.request("POST", "/api/answer", body)
            twin = self.request("POST", "/api/answer", body)
            assert twin["recorded"] is False
            self.sent[task["id"]] = turn % 2
            task = twin["task"]
        self.connection.close()


@contextmanager
def served(store_path, access, port=0):
    """A process with the server on a port; yields port and process."""
    with listening("127.0.0.1", port) as listener:
        port = listener.getsockname()[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads' locks: the child uses none of theirs
            child = os.fork()
        if child == 0:
            try:
                with FeedbackStore(store_path) as store:
                    run(create_app(store, access), listener)
                os._exit(0)
            finally:
                os._exit(1)
    try:
        yield port, child
    finally:
        os.kill(child, signal.SIGTERM)
        status = os.waitpid(child, 0)[1]
    assert status in (signal.SIGTERM, signal.SIGKILL)  # uvicorn ends in order, and then as the signal would have it


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_fifty_annotators_and_a_kill(store_path):
    """Each judges twenty items, sending all twice; the server is killed in the middle and started again."""
    with FeedbackStore(store_path, create=True) as store:
        store.configure(overlap=PEOPLE)
        store.add_items(pairs(EACH + 1))  # each answer brings the next task, and the last one too
    access, sent, failed = Access(), {}, []

    def judge(person):
        try:
            person.judge()
        except BaseException as error:
            failed.append(error)

    with served(store_path, access) as (port, child):
        people = [Person(f"annotator {n}", port, token(access), sent) for n in range(PEOPLE)]
        threads = [threading.Thread(target=judge, args=(person,)) for person in people]
        for thread in threads:
            thread.start()
        while len(sent) < PEOPLE * EACH // 2 and not failed:
            time.sleep(0.01)
        before = len(sent)
        os.kill(child, signal.SIGKILL)
    with served(store_path, access, port):
        for thread in threads:
            thread.join()
    assert not failed
    assert PEOPLE * EACH // 2 <= before < PEOPLE * EACH
    assert len(sent) == PEOPLE * EACH
    with FeedbackStore(store_path) as store:
        answers = [event for event in store.events() if event.kind == "answer"]
        assert len(answers) == len({event.task for event in answers}) == PEOPLE * EACH
        shown = {event.task: event.content["shown"] for event in store.events() if event.kind == "assign"}
        assert all(event.content["preferred"] == shown[event.task][sent[event.task]] for event in answers)
        judgements = list(store.judgements())
        assert Counter(judgement.annotator for judgement in judgements) == {
            store.pseudonym(f"annotator {n}"): EACH for n in range(PEOPLE)
        }
        assert len({(judgement.annotator, judgement.item.id) for judgement in judgements}) == PEOPLE * EACH
        check_counts(store)
