"""The page on which annotators judge, as an ASGI application: the store's calls as JSON, and a few static files.

=====================  =======================================  ====================================================
``GET /?token=…``      a link: gives the session's cookie       then ``GET /``, the page
``GET /api/session``                                            ``{name, invited, csrf}``
``POST …/sign-in``     ``{name}``                               the session, and the next task
``POST …/sign-out``    ``{}``                                   the session
``POST …/task``        ``{}``                                   ``{task, share}``; task is null when all is done
``POST …/answer``      ``{task, submission, answer}``           ``{recorded}``, and the next task
``POST …/undo``        ``{submission}``                         ``{undone}``, and the next task
``POST …/forget``      ``{}``                                   ``{answers}``: so many were deleted
``GET …/guidelines/1`` a version                                ``{version, text}``
``GET /overview``      a link of its own, as above              progress and agreement, for who runs the study
=====================  =======================================  ====================================================

Refusals are ``{"error": message}``: 400 bad input, 401 no session, 403 not allowed (see `security`), 404 no such task,
409 answered already, 413 too long, 503 the store is busy. A submission's id is the client's: what is sent again is done
once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from reward_models.feedback.agreement import Agreement, Figure, Tally, measure_agreement
from reward_models.feedback.answers import FeedbackError, TooLong, check_text, read_answer
from reward_models.feedback.items import MAX_NAME
from reward_models.feedback.security import Access, Guard, Session, Site, cookie_name, plain_name, refusal
from reward_models.feedback.store import FeedbackStore
from reward_models.feedback.types import Conflict, UnknownTask

MAX_BODY = 1 << 20
"""Bytes of a request: a text of `MAX_TEXT` characters fits, however it is written in JSON."""

_PAGE = Path(__file__).parent / "page"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

# A navigation of our own: on a redirect from another site's link, browsers withhold the cookie that has just been set.
_COME_IN = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={0}"><a href="{0}">Come in</a>'
)

_Act: TypeAlias = Callable[[Session, dict[str, Any]], dict[str, Any]]


def create_app(store: FeedbackStore, access: Access, site: Site | None = None) -> ASGIApp:
    """The application.

    Args:
        store: may be used by others meanwhile.
        access: makes the links.
        site: where the page is; default: on this machine alone.
    """
    site = Site() if site is None else site
    page = _Page(store, access, site)
    acts: dict[str, _Act] = {"task": page.task, "answer": page.answer, "undo": page.undo}
    routes = [
        Route("/", page.document("index.html")),
        Route("/overview", page.document("overview.html")),
        Route("/overview/figures", page.figures),
        Route("/api/session", page.session),
        Route("/api/sign-in", page.sign_in, methods=["POST"]),
        Route("/api/sign-out", page.sign_out, methods=["POST"]),
        Route("/api/forget", page.forget, methods=["POST"]),
        Route("/api/guidelines/{version:int}", page.guidelines),
        *(Route(f"/api/{name}", page.act(act), methods=["POST"]) for name, act in acts.items()),
        *(Route(f"/{path.name}", _static(path)) for path in sorted(_PAGE.iterdir()) if path.suffix in _TYPES),
    ]
    errors: Any = {FeedbackError: _refused, HTTPException: _failed, Exception: _broken}
    return Guard(Starlette(routes=routes, exception_handlers=errors), access, site)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; port 0 takes a free one.

    Raises:
        OSError: the address is not this machine's, or the port is taken; the message says what to do.
    """
    if not 0 <= port <= 65535:
        raise OSError(f"there is no port {port}: they go from 0, which takes a free one, to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port} ({error}); --port 0 takes a free port") from error
    with listener:
        yield listener


def run(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until interrupted (SIGINT, SIGTERM)."""
    # No access log: it would have the links' tokens.
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,  # its own would close others' handlers; warnings reach the terminal without it
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after an orderly end
        uvicorn.Server(config).run(sockets=[listener])


class _Page:
    """What the routes do. The store waits for the disk, so it is called in a thread."""

    def __init__(self, store: FeedbackStore, access: Access, site: Site) -> None:
        self._store = store
        self._access = access
        self._site = site
        self._agreement = _LiveAgreement(store)

    # ------------------------------------------------------------ coming and going

    def document(self, name: str) -> Callable[[Request], Response]:
        """A page, for who has a session or comes with a link."""
        html, locked = ((_PAGE / file).read_text(encoding="utf-8") for file in (name, "locked.html"))

        def show(request: Request) -> Response:
            session: Session | None = request.state.session
            if "token" not in request.query_params:
                return HTMLResponse(locked, 401) if session is None else HTMLResponse(html)
            entered = self._access.enter(request.query_params["token"])
            if entered is None or (entered.role == "overview") != (name == "overview.html"):
                return HTMLResponse(locked, 403)
            response = HTMLResponse(_COME_IN.format("overview" if entered.role == "overview" else "./"))
            if session is None or session.invited != entered.invited:  # else who is signed in stays so
                self._set_cookie(request, response, entered)
            return response

        return show

    def session(self, request: Request) -> Response:
        return JSONResponse(self._described(_session(request)))

    async def sign_in(self, request: Request) -> Response:
        session, record = _session(request), await _read(request, "name")
        name = plain_name(_text(record, "name"))
        if session.invited not in (None, name):
            raise HTTPException(403, f"this link is for '{session.invited}': sign in by that name")
        session = session.signed_in(name)
        state = await run_in_threadpool(self.task, session, {})  # the store refuses what is no name
        return self._renewed(request, session, state)

    async def sign_out(self, request: Request) -> Response:
        await _read(request)
        return self._renewed(request, _session(request).signed_in(None))

    async def forget(self, request: Request) -> Response:
        await _read(request)
        session = _session(request)
        deleted = await run_in_threadpool(self._forget, _name(session))
        return self._renewed(request, session.signed_in(None), {"answers": deleted})

    def _forget(self, name: str) -> int:
        known = name in self._store.progress().annotators
        return self._store.forget(name) if known else 0

    def _described(self, session: Session) -> dict[str, Any]:
        return {"name": session.name, "invited": session.invited, "csrf": self._access.csrf(session)}

    def _renewed(self, request: Request, session: Session, also: dict[str, Any] | None = None) -> Response:
        response = JSONResponse({**self._described(session), **(also or {})})
        self._set_cookie(request, response, session)
        return response

    def _set_cookie(self, request: Request, response: Response, session: Session) -> None:
        """Until the browser is closed."""
        name, secure = cookie_name(request), self._site.encrypted
        response.set_cookie(name, self._access.seal(session), httponly=True, samesite="strict", secure=secure)

    # ------------------------------------------------------------ judging

    def act(self, act: _Act) -> Any:
        """An endpoint for who is signed in."""

        async def endpoint(request: Request) -> Response:
            session, record = _session(request), await _read(request)
            _name(session)
            return JSONResponse(await run_in_threadpool(act, session, record))

        return endpoint

    def task(self, session: Session, record: dict[str, Any]) -> dict[str, Any]:
        task, share = self._store.assign(_name(session)), self._store.share(_name(session))
        told = {name: getattr(share, name) for name in ("answered", "skipped", "left")}
        return {"task": None if task is None else task.to_json(), "share": told}

    def answer(self, session: Session, record: dict[str, Any]) -> dict[str, Any]:
        _check_fields(record, "task", "submission", "answer")
        task, submission = _text(record, "task"), _text(record, "submission")
        recorded = self._store.submit(_name(session), task, submission, read_answer(record["answer"]))
        return {"recorded": recorded, **self.task(session, {})}

    def undo(self, session: Session, record: dict[str, Any]) -> dict[str, Any]:
        _check_fields(record, "submission")
        undone = self._store.undo(_name(session), _text(record, "submission"))
        return {"undone": undone is not None, **self.task(session, {})}

    def guidelines(self, request: Request) -> Response:
        _session(request)
        return JSONResponse(dataclasses.asdict(self._store.guidelines(request.path_params["version"])))

    # ------------------------------------------------------------ overview

    def figures(self, request: Request) -> Response:
        """How far annotation has come, and how far annotators agree. Here they go by name."""
        _session(request)
        progress, guidelines = self._store.progress(), self._store.guidelines()
        names = {share.pseudonym: name for name, share in progress.annotators.items()}
        return JSONResponse(
            {
                "progress": dataclasses.asdict(progress),
                "overlap": self._store.settings.overlap,
                "guidelines": dataclasses.asdict(guidelines),
                "agreement": _agreement_json(self._agreement(), names),
            }
        )


class _LiveAgreement:
    """The agreement, measured again when somebody has said something, but at most a tenth of the time."""

    def __init__(self, store: FeedbackStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._latest = -1
        self._found = Agreement()
        self._rested = 0.0

    def __call__(self) -> Agreement:
        with self._lock:
            latest, started = self._store.latest, time.monotonic()
            if latest != self._latest and started >= self._rested:
                self._found, self._latest = measure_agreement(self._store.judgements()), latest
                self._rested = time.monotonic() + 9 * (time.monotonic() - started)
            return self._found


def _agreement_json(found: Agreement, names: dict[str, str]) -> dict[str, Any]:
    def tallies(by_pseudonym: dict[str, Tally]) -> dict[str, Any]:
        return {names.get(pseudonym, pseudonym): _tally_json(tally) for pseudonym, tally in by_pseudonym.items()}

    return {
        "kinds": {
            kind: {
                **dataclasses.asdict(one),
                "figures": {name: _figure_json(one.figures[name]) for name in one.figures},
            }
            for kind, one in found.kinds.items()
        },
        "gold": tallies(found.gold),
        "repeats": tallies(found.repeats),
        "first_shown": _tally_json(found.first_shown),
    }


def _tally_json(tally: Tally) -> dict[str, Any]:
    return {"hits": tally.hits, "total": tally.total, "share": _figure_json(tally.share)}


def _figure_json(figure: Figure) -> dict[str, Any] | None:
    return None if math.isnan(figure.value) else dataclasses.asdict(figure)


# ---------------------------------------------------------------- requests


def _static(path: Path) -> Callable[[Request], Response]:
    content, media_type = path.read_bytes(), _TYPES[path.suffix]
    return lambda request: Response(content, media_type=media_type)


def _session(request: Request) -> Session:
    session: Session | None = request.state.session
    if session is None:
        raise HTTPException(401, "there is no session: open the link that was printed")
    return session


def _name(session: Session) -> str:
    if session.name is None:
        raise HTTPException(403, "sign in first")
    return session.name


async def _read(request: Request, *fields: str) -> dict[str, Any]:
    """The object in the body, which has these fields (if any are given); never more than `MAX_BODY` bytes."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "the body must be application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"a request has {MAX_BODY} bytes at most")
    try:
        record = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise HTTPException(400, f"the body must be an object, got {type(record).__name__}")
    if fields:
        _check_fields(record, *fields)
    return record


def _check_fields(record: dict[str, Any], *fields: str) -> None:
    if set(record) != set(fields):
        raise HTTPException(400, f"fields {', '.join(fields)} are wanted, got {', '.join(record) or 'none'}")


def _text(record: dict[str, Any], field: str) -> str:
    check_text(record[field], f"field '{field}'", MAX_NAME)
    return str(record[field])


def _refused(request: Request, error: Exception) -> Response:
    """What the store says no to."""
    statuses: dict[type[Exception], int] = {UnknownTask: 404, Conflict: 409, TooLong: 413}
    busy = isinstance(error.__cause__, sqlite3.Error)
    return refusal(503 if busy else statuses.get(type(error), 400), str(error))


def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, error.detail)


def _broken(request: Request, error: Exception) -> Response:
    """Something else: the server's log has it, the client learns no more than that."""
    return refusal(500, "the server has failed; its log says why")
