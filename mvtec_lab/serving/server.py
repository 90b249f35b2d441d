"""Run an application on a socket until it is stopped; clients that say nothing are not waited for."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 500  # at once: half of the 1,024 files that a process may have open
GRACE = 30  # seconds for what was accepted when the service is stopped, beside those that a request may take to arrive


def serve(app: Any, listening: socket.socket, timeout: float) -> None:
    """Answer requests until SIGTERM or Ctrl-C; what was accepted by then is answered.

    Args:
        timeout: seconds for the head of a request to arrive; connections without one are closed.
    """
    config = uvicorn.Config(
        app,
        http=_patient_for(timeout),
        lifespan="on",
        log_config=None,
        log_level="error",  # below it are a line for each request, and for each that is none
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=math.ceil(timeout) + GRACE,
    )
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each form that is none
    with suppress(KeyboardInterrupt):  # which ends a service as it should end
        uvicorn.Server(config).run(sockets=[listening])


def _patient_for(timeout: float) -> type[H11Protocol]:
    """Return uvicorn's protocol with the limit that it lacks: of the time that a request's head may take."""

    class Patient(H11Protocol):
        _before: Any = None  # the request that was the last one when the clock began
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._clock = self.loop.call_later(timeout, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._clock is not None:
                self._clock.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            """Close a connection that has begun no request for ``timeout`` seconds, or up to twice that."""
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.cycle is self._before:
                self.transport.close()
                return
            self._before = self.cycle
            self._clock = self.loop.call_later(timeout, self._look)

    return Patient
