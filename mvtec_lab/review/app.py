"""Answer the review's page over HTTP: what there is to see, one action at a time, and a new version of the data set.

Images are named by number alone, so that no path comes from outside. Whatever changes something needs a header that no
form and no other site can send; names of hosts are checked, so that another site's name cannot be bent to this machine.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mvtec_lab.data.regions import Size
from mvtec_lab.errors import DiskFullError, LabError
from mvtec_lab.review import pictures
from mvtec_lab.review.export import write_version
from mvtec_lab.review.items import Item, Subject
from mvtec_lab.review.names import class_name
from mvtec_lab.review.store import Kept, NothingToUndoError, Outcome, State, Store

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
HEADER = "x-review"  # a form of another site cannot send it, and a script of it would have to ask first
LARGEST = 8 << 20  # bytes of an action: the run lengths of a mask of LONGEST x LONGEST that is noise have 7 MB
LONGEST_NAME = 100  # letters of a random name that a page makes up
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # the token is in the first address
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Let requests through that name this server and, where there is a token, know it; add headers to every answer.

    Args:
        hosts: the names under which the server is asked for, in lower case, without a port; None: any.
        token: what has to be known; None: nothing.
        cookie: the name under which a browser keeps it.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, token: str | None, cookie: str) -> None:
        self.app, self.hosts, self.token, self.cookie = app, hosts, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refused = self._refused(scope)
        await (refused or self.app)(scope, receive, guarded)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = _name(headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            return _error(403, f"this server is not called {host!r}: open the address that the command printed")
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if headers.get(HEADER) is None or (origin is not None and _name(origin.partition("://")[2]) != host):
                return _error(403, "this was sent from another page: use the review's own")
        if self.token is None:
            return None
        given = QueryParams(scope["query_string"]).get("token", "")
        if scope["path"] == "/" and _same(given, self.token):
            response = RedirectResponse("/", 303)
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
            return response
        if _same(Request(scope).cookies.get(self.cookie, ""), self.token):
            return None
        return PlainTextResponse("Open the address with its token, as the command printed it.\n", 401)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _name(host: str) -> str:
    """Return a host without its port, ``[::1]:8001`` as ``::1``."""
    return (host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]).lower()


class Review:
    """Answer the requests of a review's pages.

    Args:
        subject: what is reviewed.
        store: where it is kept.
        order: places of the subject's items, those first that are shown first.
        out: the folder in which new versions are written.
    """

    def __init__(self, subject: Subject, store: Store, order: Sequence[int], out: Path) -> None:
        self.subject, self.store, self.out = subject, store, out
        numbers = store.add({item.key: item.label for item in subject.items})
        self.items: dict[int, Item] = {numbers[item.key]: item for item in subject.items}
        self.order = [numbers[subject.items[place].key] for place in order]
        self._exporting = threading.Lock()

    def app(self, hosts: Sequence[str] | None = None, token: str | None = None, cookie: str = "review") -> ASGIApp:
        """Return the application, behind its guard."""
        routes = [
            Route("/", _file("index.html")),
            Route("/review.css", _file("review.css")),
            Route("/review.js", _file("review.js")),
            Route("/draw.js", _file("draw.js")),
            Route("/api/items", _get(self._overview)),
            Route("/api/items/{number:int}", _get(self._whole)),
            Route("/api/items/{number:int}", _post(self._act), methods=["POST"]),
            Route("/api/items/{number:int}/picture", self._picture),
            Route("/api/items/{number:int}/drawn", self._picture),
            Route("/api/changes", _get(self._changes)),
            Route("/api/undo", _post(self._undo), methods=["POST"]),
            Route("/api/versions", _post(self._export), methods=["POST"]),
        ]
        handlers: Mapping[Any, Any] = {HTTPException: _failed, LabError: _failed, Exception: _failed}
        return Guard(Starlette(routes=routes, exception_handlers=handlers), hosts, token, cookie)

    def _overview(self, request: Request) -> dict[str, Any]:
        last = self.store.last()  # before the states: a change in between is sent once more, and none is missed
        kept = {item.id: item for item in self.store.items() if item.id in self.items}
        return {
            "title": self.subject.title,
            "classes": self._classes(),
            "notes": self.subject.notes,
            "items": [self._short(kept[number]) for number in self.order],
            "last": last,
            "has": {  # of keys that do nothing without it the page says nothing
                "maps": any(item.drawn is not None for item in self.items.values()),
                "masks": any(item.found is not None for item in self.items.values()),
            },
        }

    def _classes(self) -> list[str]:
        used = {item.state.label for item in self.store.items() if item.id in self.items}
        return list(dict.fromkeys([*self.subject.classes, *sorted(used)]))

    def _short(self, kept: Kept) -> dict[str, Any]:
        state = kept.state
        return {
            "id": kept.id,
            "name": self.items[kept.id].name or kept.path,
            "version": kept.version,
            "verdict": state.verdict,
            "label": state.label,
            "marked": bool(state.boxes) or state.mask is not None,
            "said": dict(self.items[kept.id].said),
            "was": self.items[kept.id].label,
            "known": self.items[kept.id].sample is not None,
        }

    def _whole(self, request: Request) -> dict[str, Any]:
        kept, item = self._kept(request), self.items[request.path_params["number"]]
        size = pictures.size_of(item.file)
        shown, state = pictures.shown_size(size), kept.state
        mask = pictures.unpacked(state.mask, shown) if state.mask is not None else self._mask_of_data(item, size, shown)
        found = _found(item, size, shown)
        return {
            **self._short(kept),
            "width": size[1],
            "height": size[0],
            "shown": [shown[1], shown[0]],
            "boxes": state.boxes,
            "mask": None if mask is None else pictures.runs_of(mask),
            "found": None if found is None else pictures.runs_of(found),
            "drawn": item.drawn is not None,
        }

    def _mask_of_data(self, item: Item, size: Size, shown: Size) -> np.ndarray | None:
        """Return the mask that the data set has of an image, as it is shown; None where it has none."""
        if item.sample is None or self.subject.base is None:
            return None
        mask = item.sample.read_mask(self.subject.base.folder)
        return pictures.resized(mask, shown) if mask is not None and mask.shape == size else None

    def _kept(self, request: Request) -> Kept:
        number = request.path_params["number"]
        if number not in self.items:
            raise HTTPException(404, "there is no such image in this review: load the page again")
        return self.store.item(number)

    async def _picture(self, request: Request) -> Response:
        item = self.items.get(request.path_params["number"])
        file = None if item is None else item.file if request.url.path.endswith("/picture") else item.drawn
        if file is None:
            raise HTTPException(404, "there is no such picture")
        data = await run_in_threadpool(pictures.picture, file)
        tag = f'"{hashlib.blake2b(data, digest_size=8).hexdigest()}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"etag": tag, "cache-control": "private, no-cache"})
        return Response(data, media_type="image/jpeg", headers={"etag": tag, "cache-control": "private, no-cache"})

    def _act(self, request: Request, said: Mapping[str, Any]) -> Response:
        kept = self._kept(request)
        item = self.items[kept.id]
        kind, version = said.get("action"), said.get("version")
        if type(version) is not int:
            raise HTTPException(422, "version is no number")
        changes: dict[str, Any]
        if kind == "confirm":
            changes = {"verdict": "confirmed"}
        elif kind == "drop":
            changes = {"verdict": "dropped"}
        elif kind == "relabel":
            changes = {"verdict": "relabelled", "label": class_name(said.get("label"), self._classes())}
        elif kind == "mark":
            changes = self._marks(said, pictures.size_of(item.file))
        else:
            raise HTTPException(422, f"action {str(kind)[:40]!r} is none of confirm, relabel, drop and mark")
        person, name = _random_names(said)
        return self._answer(self.store.act(kept.id, version, kind, changes, person, name), said)

    def _marks(self, said: Mapping[str, Any], size: Size) -> dict[str, Any]:
        try:
            changes: dict[str, Any] = {}
            if "boxes" in said:
                changes["boxes"] = pictures.boxes_from(said["boxes"], size)
            if "mask" in said:
                changes["mask"] = pictures.packed(said["mask"], pictures.shown_size(size))
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        if not changes:
            raise HTTPException(422, "a mark is boxes, a mask or both")
        return changes

    def _undo(self, request: Request, said: Mapping[str, Any]) -> Response:
        return self._answer(self.store.undo(*_random_names(said)), said)

    def _answer(self, outcome: Outcome, said: Mapping[str, Any]) -> Response:
        """Return the image as it now is; of an action that came too late with 409."""
        since = said.get("since")
        body: dict[str, Any] = {"item": self._short(outcome.item)}
        if type(since) is int:
            body |= self._since(since)
        if not outcome.accepted:
            body["error"] = "somebody else has changed this image since you saw it: look at it again"
        return JSONResponse(body, 200 if outcome.accepted else 409)

    def _changes(self, request: Request) -> dict[str, Any]:
        since = request.query_params.get("since", "0")
        return self._since(int(since) if since.isdecimal() and len(since) < 16 else 0)

    def _since(self, since: int) -> dict[str, Any]:
        changed, last = self.store.changed(since)
        return {"changed": [self._short(kept) for kept in changed if kept.id in self.items], "last": last}

    def _export(self, request: Request, said: Mapping[str, Any]) -> Response:
        if not self._exporting.acquire(blocking=False):
            raise HTTPException(409, "a version is being written already: wait for it")
        try:
            states: dict[str, State] = {kept.path: kept.state for kept in self.store.items()}
            return JSONResponse(write_version(self.subject, states, self.out))
        finally:
            self._exporting.release()


def _found(item: Item, size: Size, shown: Size) -> np.ndarray | None:
    """Return the mask that a model has found in an image, as it is shown; None where it has found none."""
    if item.found is None:
        return None
    if item.level is not None:
        return pictures.mask_of_map(item.found, item.level, shown)
    mask = pictures.mask_of_file(item.found, size)
    return None if mask is None else pictures.resized(mask, shown)


def _random_names(said: Mapping[str, Any]) -> tuple[str, str]:
    """Return the names of the person and of the action."""
    names = said.get("person"), said.get("request")
    for name in names:
        if not isinstance(name, str) or not 8 <= len(name) <= LONGEST_NAME or not name.isascii():
            raise HTTPException(422, f"person and request are random names of 8 to {LONGEST_NAME} letters")
    return str(names[0]), str(names[1])


Endpoint = Callable[[Request], Awaitable[Response]]


def _file(name: str) -> Endpoint:
    async def answer(request: Request) -> Response:
        return FileResponse(PAGE / name, headers={"cache-control": "no-cache"})

    return answer


def _get(look: Callable[[Request], Any]) -> Endpoint:
    async def answer(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(look, request))

    return answer


def _post(change: Callable[[Request, Mapping[str, Any]], Response]) -> Endpoint:
    async def answer(request: Request) -> Response:
        said = await _body(request)
        return await run_in_threadpool(change, request, said)

    return answer


async def _body(request: Request) -> Mapping[str, Any]:
    """Return the JSON object of a request."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LARGEST:
            raise HTTPException(413, f"this has more than {LARGEST >> 20} MiB: draw a coarser mask")
    try:
        said = json.loads(bytes(data) or b"{}")
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "this is no JSON") from error
    if not isinstance(said, dict):
        raise HTTPException(400, "this is no JSON object")
    return said


async def _failed(request: Request, error: Exception) -> Response:
    """Answer an error in one line; what nobody expected is logged with its traceback."""
    if isinstance(error, HTTPException):
        return _error(error.status_code, str(error.detail))
    if isinstance(error, NothingToUndoError):
        return _error(404, str(error))
    if isinstance(error, DiskFullError):
        return _error(507, str(error))
    if isinstance(error, LabError):
        return _error(422, str(error))
    log.error("the review failed", exc_info=error)
    return _error(500, "the review failed: what was answered before is kept; its terminal says more")


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
