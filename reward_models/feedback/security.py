"""Who is let in, and what each request must show: the page may be local, but any website can send requests to it.

A request must name a host that is ours: a foreign name that leads to this machine is DNS rebinding. Links carry a
random token; it is exchanged for a session, a signed cookie that scripts cannot read and other sites cannot send. What
changes anything must come from our own origin, and repeat a token that only our own page can have read (CSRF).

The server remembers nobody: tokens, sessions and CSRF tokens follow from one random key (HMAC-SHA256).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reward_models.feedback.answers import FeedbackError, check_text
from reward_models.feedback.items import MAX_NAME

Role: TypeAlias = Literal["annotator", "overview"]
"""One who judges, or one who sees how far all have come: who sees agreement while judging is no longer independent."""

CSRF_HEADER = "X-CSRF-Token"

HEADERS = {
    # No script but our files, nothing from elsewhere, and no way to make markup of a string.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every response."""

_HOST = re.compile(r"(\[[0-9a-f:]+\]|[0-9a-z.-]+)(:[0-9]{1,5})?", re.IGNORECASE)
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Site:
    """Where the page is, and by which names it may be called.

    Raises:
        ValueError: the URL is none, or the page listens on all addresses and none is named.
    """

    host: str = "127.0.0.1"
    """The address to listen on."""
    url: str | None = None
    """How annotators reach it, where something stands in between: a proxy (which brings TLS), or a tunnel."""

    def __post_init__(self) -> None:
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"a URL starts with http:// or https:// and a host, got '{self.url}'")
        elif self._everywhere:
            raise ValueError(
                f"'{self.host}' is all addresses of this machine: name the one that annotators will use, "
                "with --host 192.168.1.5 or --url http://192.168.1.5:8765"
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        address = _address(self.host)
        return self.host == "localhost" if address is None else address.is_loopback

    @property
    def encrypted(self) -> bool:
        """Whether annotators reach it by HTTPS."""
        return self.url is not None and urlsplit(self.url).scheme == "https"

    def address(self, port: int) -> str:
        """The page's URL, if it listens on this port; ends with a slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{port}/" if self.url is None else self.url.rstrip("/") + "/"

    def knows(self, netloc: str) -> bool:
        """Whether a Host header names this site; any port, since tunnels change it."""
        if _HOST.fullmatch(netloc) is None:
            return False
        names = {self.host.lower(), *(_LOOPBACK if self.local or self._everywhere else ())}
        if self.url is not None:
            names.add(str(urlsplit(self.url).hostname))
        return urlsplit(f"//{netloc}").hostname in names

    def is_own(self, origin: str, netloc: str) -> bool:
        """Whether an Origin header is that of the page which a request to this host came from."""
        own = {f"http://{netloc}".lower()}
        if self.url is not None:
            parts = urlsplit(self.url)
            own.add(f"{parts.scheme}://{parts.netloc}".lower())
        return origin.lower() in own

    @property
    def _everywhere(self) -> bool:
        address = _address(self.host)
        return address is not None and address.is_unspecified


@dataclass(frozen=True)
class Session:
    """What a cookie says."""

    role: Role
    invited: str | None = None
    """Whom the link was made for; None: anyone, who then says a name."""
    name: str | None = None
    """Who has signed in."""
    nonce: str = ""
    """Drawn at signing in, so that each session has a CSRF token of its own."""

    def signed_in(self, name: str | None) -> Session:
        """The same, for another name; None: signed out."""
        return replace(self, name=name, nonce=secrets.token_hex(8))


class Access:
    """Links, sessions and CSRF tokens, all from one key.

    Args:
        annotators: who gets a link of their own; without any, one link serves all, and each says a name.
        key: 32 random bytes; default: drawn, so that links are good until the server ends.

    Raises:
        FeedbackError: a name is empty or too long.
    """

    def __init__(self, annotators: Iterable[str] = (), key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(32) if key is None else key
        invited: list[str | None] = list(dict.fromkeys(map(plain_name, annotators)))
        for name in invited:
            check_text(name, "an annotator's name", MAX_NAME)
            if not name:
                raise FeedbackError("an annotator's name is empty")
        doors = [Session("annotator", name) for name in invited or [None]] + [Session("overview")]
        self.tokens = {self._mac("link", door.role, door.invited or ""): door for door in doors}
        """What stands in a link, and the session that it opens."""

    def links(self, address: str) -> dict[str, str]:
        """The links, by whom they are for: a name, "annotator" (anyone) or "overview".

        Args:
            address: the page's URL, with a slash at its end.
        """
        return {
            door.invited or door.role: f"{address}{'overview' if door.role == 'overview' else ''}?token={token}"
            for token, door in self.tokens.items()
        }

    def enter(self, token: str) -> Session | None:
        """A new session for who comes with a link; None if the token is none of ours."""
        found = [door for known, door in self.tokens.items() if _same(known, token)]
        return found[0].signed_in(None) if found else None

    def seal(self, session: Session) -> str:
        """The cookie of a session: what it says, and a signature."""
        content = json.dumps([session.role, session.invited, session.name, session.nonce])
        sealed = base64.urlsafe_b64encode(content.encode()).decode()
        return f"{sealed}.{self._mac('session', sealed)}"

    def unseal(self, cookie: str) -> Session | None:
        """What a cookie says; None if it is none of ours."""
        sealed, _, signature = cookie.partition(".")
        if not _same(self._mac("session", sealed), signature):
            return None
        return Session(*json.loads(base64.urlsafe_b64decode(sealed)))

    def csrf(self, session: Session) -> str:
        """What requests of this session that change anything must repeat."""
        return self._mac("csrf", self.seal(session))

    def _mac(self, *words: str) -> str:
        digest = hmac.new(self._key, json.dumps(words).encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


class Guard:
    """ASGI middleware around the whole application: refuses what the module's docstring says, and adds `HEADERS`.

    What passes has the session, or None, in ``request.state.session``; what it may do is the application's to see.
    """

    def __init__(self, app: ASGIApp, access: Access, site: Site) -> None:
        self.app = app
        self.access = access
        self.site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, let through or refused."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket, which the page has none of
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        request = Request(scope, receive)
        session = self.access.unseal(request.cookies.get(cookie_name(request), ""))
        if session is not None and session.role != role_of(request):
            session = None
        scope.setdefault("state", {})["session"] = session
        refused = self._refusal(request, session)
        answer: ASGIApp = self.app if refused is None else refused
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request, session: Session | None) -> JSONResponse | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self.site.knows(hosts[0]):
            return refusal(403, "this page goes by another host name: open the link that was printed")
        if request.method in ("GET", "HEAD"):
            return None
        if not self.site.is_own(request.headers.get("origin", ""), hosts[0]):
            return refusal(403, "the request comes from another website")
        if session is None:
            return refusal(401, "there is no session: open the link that was printed")
        if not _same(self.access.csrf(session), request.headers.get(CSRF_HEADER, "")):
            return refusal(403, f"header {CSRF_HEADER} is not this session's: reload the page")
        return None


def plain_name(name: str) -> str:
    """A name as typed, so that it is the same person's however it was typed: no blanks around, characters composed."""
    return unicodedata.normalize("NFC", name.strip())


def refusal(status: int, message: str) -> JSONResponse:
    """``{"error": message}``."""
    return JSONResponse({"error": message}, status)


def role_of(request: Request) -> Role:
    """Whom the requested page is for."""
    return "overview" if request.scope["path"].startswith("/overview") else "annotator"


def cookie_name(request: Request) -> str:
    """Of the session that the requested page wants: one browser can have both.

    Browsers send a host's cookies to all of its ports; with the port in the name, two servers do not collide.
    """
    server = request.scope.get("server") or ("", 0)
    return f"textgen_{role_of(request)}_{server[1]}"


def _same(expected: str, given: str) -> bool:
    """In a time that does not tell where they differ."""
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
