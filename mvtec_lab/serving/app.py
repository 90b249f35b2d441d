"""Answer images over HTTP: what may come in, what waits, and what is said where it cannot be answered."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

from mvtec_lab.config import ServeConfig
from mvtec_lab.data.content import Content
from mvtec_lab.data.images import TooManyPixelsError
from mvtec_lab.data.listing import EXTENSIONS
from mvtec_lab.data.transforms import Cut
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.onnx import Look
from mvtec_lab.engine.threads import cores
from mvtec_lab.errors import LabError, printable
from mvtec_lab.problems.base import Prediction
from mvtec_lab.problems.model import judge
from mvtec_lab.serving import schema
from mvtec_lab.serving.answers import answer, seen
from mvtec_lab.serving.metrics import Metrics

log = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")  # FastAPI's own loads its script from the internet
BODIES = 10  # of the largest size, that may be held at once: 500 MB of max_mb=50, whoever sends them
DECODERS = 4  # threads at most: each may hold an image of MAX_PIXELS, 270 MB
AHEAD = 4  # images that are decoded before the model is ready for them: tiles take the memory of the image
LONGEST_NAME = 200  # letters of a file's name that are given back
_TRUE, _FALSE = ("1", "true", "yes"), ("", "0", "false", "no")


class Runtime(NamedTuple):
    """Hold what runs the network, None: PyTorch, and what is said of it: its name, and why it is no other one."""

    look: Look | None
    said: dict[str, str]


BY_TORCH = Runtime(None, {"runtime": "pytorch"})


class Refused(Exception):  # noqa: N818 - an answer like another
    """Hold what is answered in place of a prediction: a status of HTTP, one line, and seconds until it may be tried."""

    def __init__(self, status: int, message: str, retry: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry = status, retry

    def response(self) -> JSONResponse:
        """Return the answer; what was not read of the request is not waited for."""
        headers = {} if self.retry is None else {"retry-after": str(self.retry)}
        if self.status in (408, 413, 503):
            headers["connection"] = "close"
        return JSONResponse({"error": str(self)}, self.status, headers)


class _Parts(MultiPartParser):
    """Parse a form that is in memory already: its files stay there."""

    spool_max_size = 2**62


class Service:
    """Answer requests by a model, which judges each image by itself, in a thread of its own.

    Together with others a ResNet18 would take about a quarter less on a CPU, and the last digits would depend on which
    others they are.

    Args:
        model: the checkpoint.
        about: what ``/model`` says of it.
        settings: limits, as in the configuration.
        batch_size: tiles of an image that are judged at once.
        runtime: what runs the network, and what ``/healthz`` says of it.
    """

    def __init__(
        self, model: Model, about: dict[str, Any], settings: ServeConfig, batch_size: int, runtime: Runtime = BY_TORCH
    ) -> None:
        self.model, self.about, self.settings, self.runtime = model, about, settings, runtime
        self.batch_size, self.metrics = batch_size, Metrics()
        self.thread = ThreadPoolExecutor(1, "model")
        self.decoders = ThreadPoolExecutor(min(DECODERS, cores()), "decoder")
        self.ahead = asyncio.Semaphore(AHEAD)
        self.inside = 0  # images that were accepted and are not answered
        self.held = 0  # bytes of requests
        self.pace = 0.1  # seconds an image, of late
        self.largest = round(settings.max_mb * 1e6)

    def app(self) -> FastAPI:
        """Return the application; it ends its threads when it is shut down."""

        @asynccontextmanager
        async def living(app: FastAPI) -> AsyncIterator[None]:
            yield
            self.close()

        app = FastAPI(
            title=f"mvtec_lab: {self.about['attempt'] or self.about['method']}",
            version=self.about["version"],
            description=schema.DESCRIPTION,
            docs_url=None,
            redoc_url=None,
            lifespan=living,
            exception_handlers={HTTPException: _failed},
        )
        app.add_api_route(
            "/predict", self.predict, methods=["POST"], response_model=None, summary="Judge images", **schema.PREDICT
        )
        app.add_api_route("/model", self._model, response_model=schema.About, summary="Say which model answers")
        app.add_api_route("/healthz", self._healthy, response_model=None, summary="Tell that the service runs")
        app.add_api_route(
            "/readyz", self._ready, response_model=None, summary="Tell whether there is room for an image"
        )
        app.add_api_route("/metrics", self._metrics, response_model=None, summary="Give Prometheus its numbers")
        app.add_api_route("/docs", _page, include_in_schema=False)
        app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
        return app

    def close(self) -> None:
        """Judge what was accepted, and end the threads."""
        self.thread.shutdown()
        self.decoders.shutdown()

    async def predict(self, request: Request) -> Response:
        """Answer an image (the body itself), or several (files of a form), each with its decision and score."""
        began = time.perf_counter()
        try:
            response = await self._answered(request)
            self.metrics.seconds.observe(time.perf_counter() - began)
        except Refused as refused:
            response = refused.response()
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it; it is counted as nginx counts it
        except Exception:  # of any kind: the next image is answered all the same
            log.exception("an image could not be judged")
            response = Refused(500, "the image could not be judged: the service's log says why").response()
        self.metrics.requests.labels(str(response.status_code)).inc()
        return response

    async def _answered(self, request: Request) -> Response:
        self._room(1)  # before anything is read
        pictures = _flag(request.query_params.get("map", ""), "map")
        held = _Held(self)
        try:
            body = await self._body(request, held)
            several = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
            contents = await self._parts(request, body) if several else [Content("image", body)]
            self._room(len(contents))
            self.inside += len(contents)
            self.metrics.inside.set(self.inside)
            try:
                began = time.perf_counter()
                results = await asyncio.gather(*(self._judged(each, pictures) for each in contents))
                self.pace += 0.1 * ((time.perf_counter() - began) / len(contents) - self.pace)
            finally:
                self.inside -= len(contents)
                self.metrics.inside.set(self.inside)
        finally:
            held.release()
        if not several:
            (result,) = results
            if isinstance(result, Refused):
                raise result
            return JSONResponse(result)
        named = zip(contents, results, strict=True)
        return JSONResponse(
            {
                "results": [
                    {"name": content.name, "error": str(r), "status": r.status} if isinstance(r, Refused) else r
                    for content, r in named
                ]
            }
        )

    def _room(self, images: int) -> None:
        """Refuse what cannot be answered in time."""
        limit = self.settings.queue
        if images > limit:
            raise Refused(413, f"these are {images} images, more than serve.queue={limit} at once: send fewer")
        if self.inside + images > limit:
            wait = max(1, math.ceil(self.inside * self.pace))
            raise Refused(503, f"{self.inside} images wait already, {limit} at most: try again in {wait} s", wait)

    async def _body(self, request: Request, held: _Held) -> bytes:
        if (length := request.headers.get("content-length", "")).isdecimal() and int(length) > self.largest:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._read(request, held), self.settings.timeout)
        except asyncio.TimeoutError:  # before Python 3.11 not TimeoutError itself
            limit = f"serve.timeout={self.settings.timeout:g}"
            raise Refused(408, f"the request did not arrive within {limit} seconds: send it faster") from None

    async def _read(self, request: Request, held: _Held) -> bytes:
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self.largest:
                raise self._too_large()
            held.take(len(chunk))
            chunks.append(chunk)
        return b"".join(chunks)

    def _too_large(self) -> Refused:
        return Refused(413, f"the request has more than serve.max_mb={self.settings.max_mb:g} MB: send less at once")

    async def _parts(self, request: Request, body: bytes) -> list[Content]:
        """Return the files of a form, whatever their fields are called."""

        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        limit = self.settings.queue + 1
        try:
            form = await _Parts(request.headers, stream(), max_files=limit, max_fields=limit).parse()
        except MultiPartException as error:
            if "Too many files" in error.message:
                self._room(limit)
            raise Refused(
                400, f"the form cannot be read ({error.message}): send files as multipart/form-data"
            ) from error
        except (KeyError, ValueError) as error:  # without a boundary
            raise Refused(400, "the form cannot be read (no boundary): send files as multipart/form-data") from error
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise Refused(400, "the form has no file: send images as files, curl -F image=@FILE")
        return [Content(_name(file.filename), await file.read()) for file in files]

    async def _judged(self, content: Content, pictures: bool) -> dict[str, Any] | Refused:
        """Return the answer for an image; why there is none is returned as well: others of its form have theirs."""
        if not content.data:
            return Refused(400, f"{content.name} is empty: send an image")
        if not content.suffix:
            return Refused(415, f"{content.name} is no image that is read here: send {', '.join(EXTENSIONS)}")
        run = asyncio.get_running_loop().run_in_executor
        try:
            async with self.ahead:
                cut, size = await run(self.decoders, seen, content, self.model)
                judged = await run(self.thread, self._judge, cut)
            del cut
            result = await run(self.decoders, answer, self.model, judged, content, size, pictures)
        except TooManyPixelsError as error:
            return Refused(413, str(error))
        except LabError as error:
            return Refused(422, str(error))
        self.metrics.images.labels(result.get("decision") or result["prediction"]).inc()
        return result

    def _judge(self, cut: Cut) -> tuple[Prediction, dict[str, str]]:
        began = time.perf_counter()
        (judged,) = judge(self.model, [cut], self.batch_size, self.runtime.look)
        self.metrics.model_seconds.observe(time.perf_counter() - began)
        return judged

    async def _model(self) -> dict[str, Any]:
        return self.about

    async def _healthy(self) -> Response:
        return JSONResponse({"status": "ok", **self.runtime.said})

    async def _ready(self) -> Response:
        free = self.settings.queue - self.inside
        return JSONResponse({"status": "ok" if free > 0 else "full", "room": free}, 200 if free > 0 else 503)

    async def _metrics(self) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)


class _Held:
    """Count the bytes of a request among those that the service holds."""

    def __init__(self, service: Service) -> None:
        self.service, self.size = service, 0

    def take(self, size: int) -> None:
        if self.service.held + size > BODIES * self.service.largest:
            raise Refused(503, "other requests fill the memory that there is for them: try again in 1 s", 1)
        self.service.held += size
        self.size += size

    def release(self) -> None:
        self.service.held -= self.size


def _flag(value: str, name: str) -> bool:
    if value.lower() not in (*_TRUE, *_FALSE):
        raise Refused(400, f"{name}={printable(value)[:40]} is neither true nor false")
    return value.lower() in _TRUE


def _name(filename: str | None) -> str:
    """Return the last part of a file's name, printable; what a client calls a file leads nowhere."""
    return printable(PurePosixPath((filename or "").replace("\\", "/")).name)[:LONGEST_NAME] or "image"


async def _page() -> Response:
    return FileResponse(PAGE, media_type="text/html")


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: f"there is no {printable(request.url.path)[:80]} here: /docs says what there is"}
    return JSONResponse({"error": said.get(error.status_code, str(error.detail))}, error.status_code, error.headers)
