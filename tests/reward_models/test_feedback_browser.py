"""The page as annotators meet it, in Chromium: nothing lost, nothing doubled, no text that acts, all by keyboard.

Wanted are the Python package playwright and any Chromium, found by TEXTGEN_CHROMIUM (its path) or on the PATH.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator

import pytest

from reward_models.feedback import FeedbackStore, Item, Prefer, Rank, Rate, Write

uvicorn = pytest.importorskip("uvicorn")
security = pytest.importorskip("reward_models.feedback.security")
server = pytest.importorskip("reward_models.feedback.server")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests want: pip install playwright")

CHROMIUM = os.environ.get("TEXTGEN_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH, and TEXTGEN_CHROMIUM names none"),
]

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "\u202eright to left, and never ended \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "unbroken" * 12_000,
    "javascript:document.title='owned' </textarea></title>${document.title='owned'}",
]
SECONDS = 60
"""How long to wait for what must come: on a busy machine a browser is slow."""
PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}


class Site:
    """A store, its server in a thread, and the contexts (browsers without a common past) that visit it."""

    def __init__(self, store: FeedbackStore, port: int, access, browser: "playwright.Browser") -> None:
        self.store, self.access, self._browser = store, access, browser
        self.address = f"http://127.0.0.1:{port}/"
        self.tokens = {door.role: token for token, door in access.tokens.items()}
        self.link = f"{self.address}?token={self.tokens['annotator']}"
        self.requested: list[str] = []
        self.complaints: list[str] = []

    def visitor(self, **options) -> "playwright.Page":
        """A page in a context of its own."""
        context = self._browser.new_context(**options)
        context.set_default_timeout(1000 * SECONDS)
        context.on("request", lambda request: self.requested.append(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        return page

    def annotator(self, name: str, **options) -> "playwright.Page":
        """One who has come in and signed in."""
        page = self.visitor(**options)
        page.goto(self.link)
        page.fill("#name", name)
        page.click("text=Agree and start")
        page.wait_for_selector("fieldset, h2:has-text('nothing to do')")
        page.wait_for_selector('main[aria-busy="false"]')  # what is pressed before does nothing
        return page

    def answers(self) -> list:
        return [event.content for event in self.store.events() if event.kind in ("answer", "skip")]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def site(store_path, browser) -> Iterator[Site]:
    """At the end: nothing was asked of anyone else, and nothing went wrong in a script."""
    access = security.Access()
    with FeedbackStore(store_path, create=True) as store, server.listening("127.0.0.1", 0) as listener:
        app = server.create_app(store, access)
        serving = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, log_level="error"))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
        thread.start()
        site = Site(store, listener.getsockname()[1], access, browser)
        yield site
        for context in browser.contexts:
            context.close()
        serving.should_exit = True
        thread.join()
    assert site.requested
    assert {url for url in site.requested if not url.startswith((site.address, "data:"))} == set()
    assert [text for text in site.complaints if not text.startswith("Failed to load resource")] == []


def pairs(count):
    return [Item.of(f"prompt {n}", [f"good {n}", f"bad {n}"]) for n in range(count)]


def wait(page, condition):
    patience = time.monotonic() + SECONDS
    while time.monotonic() < patience:
        if condition():
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"the page says: {page.inner_text('body')[:300]!r}")


def done(page) -> int:
    return int((page.inner_text("#share") or "-1").split()[0])


def fits(page) -> bool:
    """Whether nothing is wider than the screen."""
    return page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) <= innerWidth")


def lose_replies(page):
    """The server gets what is sent, and its answers are lost on the way."""

    def lose(route):
        route.fetch()
        route.abort()

    page.route("**/api/answer", lose)


# ---------------------------------------------------------------- nothing lost, nothing doubled


def test_two_annotators_at_once(site):
    site.store.configure(overlap=2)
    site.store.add_items(pairs(3))
    people = [site.annotator("ada"), site.annotator("bob")]
    for turn in range(3):
        for page in people:
            good = page.locator(".card", has_text="good")
            good.locator("input").check()
            if turn == 1:
                page.reload()
                page.wait_for_selector("fieldset")
                assert page.locator(".card", has_text="good").locator("input").is_checked()
            page.click("#submit")
        for page in people:
            wait(page, lambda page=page, turn=turn: done(page) == turn + 1)
    for page in people:
        page.wait_for_selector("text=All done. Thank you!")
    judgements = list(site.store.judgements())
    assert len(judgements) == 6
    assert {judgement.answer for judgement in judgements} == {Prefer(0)}


def test_double_clicks_and_enter_twice(site):
    site.store.add_items(pairs(8))
    page = site.annotator("ada")
    page.keyboard.press("1")
    page.dblclick("#submit")
    wait(page, lambda: done(page) == 1)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    wait(page, lambda: done(page) == 2)
    page.focus("#submit")
    page.keyboard.press("1")
    page.evaluate("for (let n = 0; n < 5; n++) document.querySelector('#submit').click()")
    wait(page, lambda: done(page) == 3)
    page.wait_for_timeout(200)
    assert len(site.answers()) == 3
    page.dblclick("#undo")
    wait(page, lambda: done(page) == 2)
    page.wait_for_timeout(200)
    assert done(page) == 2


def test_an_answer_whose_reply_was_lost_is_sent_again_after_a_reload(site):
    site.store.add_items(pairs(3))
    page = site.annotator("ada")
    lose_replies(page)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    # Asked again and again: a wait of Playwright's own may hang while its thread is in the route above.
    wait(page, lambda: "The server cannot be reached. What you entered is kept" in page.inner_text("#notice"))
    assert len(site.answers()) == 1
    page.keyboard.press("2")  # what is on its way stays as it is
    page.unroute("**/api/answer")
    page.reload()
    wait(page, lambda: done(page) == 1)
    assert not page.is_visible("#notice")
    assert site.answers() == [{"preferred": site.answers()[0]["preferred"], "margin": 0.0}]


def test_without_a_network_the_page_waits_and_tries_again(site):
    site.store.add_items([Item.of("Write."), Item.of("Write more.")])
    page = site.annotator("ada")
    page.fill("textarea", "half a text")
    page.reload()
    page.wait_for_selector("textarea")
    assert page.input_value("textarea") == "half a text"  # nothing typed is lost
    page.context.set_offline(True)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#notice:has-text('trying again in')")
    assert page.is_disabled("textarea")
    assert site.answers() == []
    page.context.set_offline(False)
    wait(page, lambda: done(page) == 1)
    assert [judgement.answer for judgement in site.store.judgements()] == [Write("half a text")]
    assert page.input_value("textarea") == ""


def test_answered_in_another_window(site):
    site.store.add_items(pairs(3))
    page = site.annotator("ada")
    twin = page.context.new_page()
    twin.goto(site.address)
    twin.wait_for_selector("fieldset")
    for each in (page, twin):
        each.keyboard.press("1")
        each.keyboard.press("Enter")
        wait(each, lambda each=each: done(each) == 1)
    assert "answered already" in twin.inner_text("#notice")
    assert len(site.answers()) == 1


def test_somebody_else_signs_in_in_another_window(site):
    """What is sent from the first window is not taken for theirs."""
    site.store.add_items(pairs(4))
    page = site.annotator("ada")
    twin = page.context.new_page()
    twin.goto(site.address)
    twin.click("#show-me")
    twin.click("#sign-out")
    twin.fill("#name", "bob")
    twin.keyboard.press("Enter")
    twin.wait_for_selector("fieldset")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#notice:has-text('Here “bob” has signed in')")
    assert site.answers() == []
    page.click("#show-me")
    page.click("#sign-out")
    page.fill("#name", "ada")
    page.keyboard.press("Enter")
    wait(page, lambda: done(page) == 1)
    assert len(site.answers()) == 1
    assert site.store.share("ada").answered == 1


# ---------------------------------------------------------------- texts are text


def test_hostile_texts_do_nothing(site):
    site.store.configure(overlap=2)
    site.store.set_guidelines("\n".join(HOSTILE))
    site.store.add_items([Item.of(HOSTILE[0], HOSTILE, kind="ranking")])
    for name, options in ((HOSTILE[1], {}), ("ada", PHONE)):
        page = site.annotator(name, **options)
        page.wait_for_selector("#guidelines[open]")
        assert page.text_content("#guidelines .text") == "\n".join(HOSTILE)
        page.keyboard.press("Escape")
        assert page.text_content("#show-me") == name
        assert page.text_content(".prompt .text") == HOSTILE[0]
        assert sorted(page.locator(".card .text").all_text_contents()) == sorted(HOSTILE)
        assert page.locator("main script, main img").count() == 0
        assert page.title() == "Feedback"
        assert fits(page)
        heads = page.locator(".card .head span:last-of-type").all_text_contents()
        assert heads == [f"Text {n}" for n in range(1, 6)]  # nothing spills over into them
    overview = site.visitor()
    overview.goto(f"{site.address}overview?token={site.tokens['overview']}")
    overview.wait_for_selector("table")
    assert overview.locator("main script, main img").count() == 0
    assert overview.title() == "Feedback: overview"


def test_the_policy_forbids_markup_from_strings(site):
    """Must fail: what a careless script would do."""
    page = site.visitor()
    page.goto(site.link)
    page.wait_for_selector("#name")
    for careless in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.createRange().createContextualFragment('<b>x</b>')",
        "document.createElement('script').textContent = '1'",
    ):
        attempt = f"(() => {{ try {{ {careless}; return 'done' }} catch (error) {{ return String(error) }} }})()"
        assert "Trusted" in page.evaluate(attempt), careless
    site.complaints.clear()


# ---------------------------------------------------------------- by keyboard, on a phone, in the dark


def test_all_by_keyboard(site):
    site.store.set_guidelines("Be kind.")
    site.store.add_items(
        [
            *pairs(3),
            Item.of("rate", ["text"]),
            Item.of("fine", ["text"], scale=(0.0, 1.0)),
            Item.of("rank", list("abc")),
        ]
    )
    site.store.add_items([Item.of("write")])
    page = site.visitor()
    page.goto(site.link)
    page.wait_for_selector("#name:focus")
    page.keyboard.type("ada")
    page.keyboard.press("Enter")
    page.wait_for_selector("#guidelines[open]")
    page.keyboard.press("Enter")
    page.wait_for_selector("fieldset")
    page.keyboard.press("Escape")  # out of a text field, if there is one
    page.keyboard.press("?")
    assert "submit" in page.inner_text("#keys")
    page.keyboard.press("Escape")
    comparisons = iter("1t2")
    for turn in range(7):
        kind = page.get_attribute("fieldset", "class")
        slider = page.locator(".slider").count()
        page.keyboard.press("Enter" if kind != "demonstration" else "Control+Enter")
        assert page.is_visible("#notice"), kind  # nothing was chosen yet
        if kind == "demonstration":
            page.keyboard.type("us 1 two")
        else:
            keys = {"comparison": next(comparisons, "") if kind == "comparison" else "", "ranking": "312"}
            for key in keys.get(kind, ["ArrowRight", "ArrowRight"] if slider else "5"):
                page.keyboard.press(key)
        page.keyboard.press("Control+Enter" if kind == "demonstration" else "Enter")
        wait(page, lambda turn=turn: done(page) == turn + 1)
    found = [judgement.answer for judgement in site.store.judgements()]
    assert {Rate(5.0), Rate(0.51), Prefer(None), Write("us 1 two")} <= set(found)
    (ranked,) = (judgement for judgement in site.store.judgements() if judgement.item.kind == "ranking")
    assert ranked.answer == Rank(tuple(ranked.shown[place] for place in (2, 0, 1)))
    page.keyboard.press("u")
    wait(page, lambda: done(page) == 6)
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    page.keyboard.type("cut off")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done. Thank you!")
    assert [skip.answer.reason for skip in site.store.skipped()] == ["cut off"]


def test_undo_shows_what_was_said(site):
    site.store.add_items([Item.of("rank", list("abc"))])
    page = site.annotator("ada")
    page.keyboard.press("2")
    page.locator(".card").nth(0).locator(".head").dblclick()  # is one click
    page.keyboard.press("3")
    assert page.locator(".place").all_text_contents() == ["2", "1", "3"]
    page.click("#submit")
    page.wait_for_selector("text=All done. Thank you!")
    page.click("#undo")
    page.wait_for_selector("fieldset")
    assert page.locator(".place").all_text_contents() == ["2", "1", "3"]
    page.locator(".card").nth(0).locator(".text").click()  # takes the place away
    assert page.locator(".place").all_text_contents() == ["", "1", "2"]
    page.keyboard.press("1")
    assert page.locator(".place").all_text_contents() == ["3", "1", "2"]
    page.click("#submit")
    page.wait_for_selector("text=All done. Thank you!")
    page.click("#undo")
    page.wait_for_selector("fieldset")
    page.click("#undo")
    page.wait_for_selector("#notice:has-text('There is nothing to undo')")


def test_on_a_phone(site):
    """Nothing is wider than the screen, and fingers find the buttons."""
    site.store.set_guidelines("Be kind. " * 200)
    site.store.add_items(
        [
            Item.of("word " * 300, ["long " * 800, "short"]),
            Item.of("rate", ["text"], scale=(0.0, 10.0)),
            Item.of("fine", ["text"], scale=(0.0, 1.0)),
            Item.of("rank", [f"text {n}" for n in range(16)]),
            Item.of("write"),
        ]
    )
    page = site.annotator("Ada Augusta King, Countess of Lovelace", **PHONE)
    page.wait_for_selector("#guidelines[open]")
    assert fits(page)
    page.tap("#guidelines button")
    for turn in range(5):
        kind = page.get_attribute("fieldset", "class")
        assert fits(page), kind
        for button in page.locator("button:visible, label:visible").all():
            box = button.bounding_box()
            assert box["height"] >= 40, button.inner_text()
            assert box["width"] >= 24, button.inner_text()
        if kind == "comparison":
            page.tap(".tie")
        elif kind == "rating":
            page.tap("input >> nth=0")
        elif kind == "ranking":
            for card in page.locator(".card .text").all():
                card.tap()
        else:
            page.fill("textarea", "mine")
        page.wait_for_timeout(600)  # a press within a double click's time of the last one is none of its own
        page.tap("#submit")
        wait(page, lambda turn=turn: done(page) == turn + 1)
    page.tap("#show-me")
    assert fits(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(site, scheme):
    """WCAG 2.1, success criterion 1.4.3: text and its ground differ by 4.5 to 1."""
    page = site.visitor(color_scheme=scheme)
    page.goto(site.link)
    page.wait_for_selector("#name")
    names = ("ground", "surface", "ink", "quiet", "accent", "on-accent", "tint", "danger", "notice")
    colours = page.evaluate(
        "names => names.map(name => getComputedStyle(document.documentElement).getPropertyValue('--' + name))", names
    )
    light = dict(zip(names, map(luminance, colours), strict=True))
    assert (light["ground"] > 0.5) == (scheme == "light")
    wanted = [(ink, ground) for ink in ("ink", "quiet") for ground in ("ground", "surface", "tint")]
    wanted += [("on-accent", "accent"), ("danger", "surface"), ("ink", "notice")]
    for ink, ground in wanted:
        low, high = sorted((light[ink], light[ground]))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def luminance(colour: str) -> float:
    """Of a colour #rgb or #rrggbb."""
    digits = colour.strip().lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return sum(share * channel for share, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# ---------------------------------------------------------------- coming and going


def test_a_link_on_another_site_lets_in(site):
    """Strict cookies are not sent on a redirect from another site's link: the page comes in by itself."""
    site.store.add_items(pairs(1))
    page = site.visitor()
    page.goto(f"data:text/html,<a href='{site.link}'>come</a>")
    page.click("a")
    page.wait_for_selector("#name")
    assert page.url == site.address  # the token is out of sight
    assert page.evaluate("document.cookie") == ""
    stranger = site.visitor()
    stranger.goto(site.address)
    assert "This page opens with a link" in stranger.inner_text("main")


def test_being_forgotten(site):
    site.store.add_items(pairs(2))
    page = site.annotator("ada")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    wait(page, lambda: done(page) == 1)
    page.click("#show-me")
    page.click("#forget")
    page.keyboard.press("Enter")  # the safe button has the focus
    assert page.is_visible("fieldset")
    assert len(list(site.store.judgements())) == 1
    page.click("#show-me")
    page.click("#forget")
    page.click("text=Delete all")
    page.wait_for_selector("#notice:has-text('Your name and 1 of your answers were deleted')")
    assert list(site.store.judgements()) == []
    assert page.evaluate("Object.keys(sessionStorage).length") == 0
    assert b"ada" not in site.store.path.read_bytes()


def test_new_guidelines_are_shown(site):
    site.store.set_guidelines("Be kind.")
    site.store.add_items(pairs(3))
    page = site.annotator("ada")
    page.wait_for_selector("#guidelines[open]:has-text('Guidelines, version 1')")
    page.keyboard.press("Escape")
    site.store.set_guidelines("Be strict.")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#guidelines[open]:has-text('Guidelines, version 2 (new)')")
    assert page.text_content("#guidelines .text") == "Be strict."
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    wait(page, lambda: done(page) == 2)
    assert not page.is_visible("#guidelines")
    page.keyboard.press("g")
    page.wait_for_selector("#guidelines[open]:has-text('version 2')")
    assert [judgement.guidelines for judgement in site.store.judgements()] == [1, 2]


def test_the_overview_renews_itself(site):
    site.store.configure(overlap=2)
    site.store.add_items([*pairs(4), *(Item.of(f"rank {n}", list("abc")) for n in range(4))])
    page = site.visitor(viewport={"width": 360, "height": 640})
    page.goto(f"{site.address}overview?token={site.tokens['overview']}")
    page.wait_for_selector("text=No item has answers from two annotators yet.")
    answers = {
        "comparison": lambda texts: Prefer(int(texts[0].startswith("bad"))),
        "ranking": lambda texts: Rank((0, 1, 2)),
    }
    for name in ("ada", "bob"):
        while (task := site.store.assign(name)) is not None:
            site.store.submit(name, task.id, task.id, answers[task.kind](task.completions))
    page.wait_for_selector("text=Kendall")
    said = page.inner_text("main")
    for figure in ("Krippendorff’s α", "Fleiss’ κ", "Cohen’s κ", "raw", "ada", "bob", "shown first was preferred"):
        assert figure in said
    assert fits(page)
