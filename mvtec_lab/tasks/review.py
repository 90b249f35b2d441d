"""Run task=review: a local page on which people go through predictions and correct them."""

from __future__ import annotations

import secrets
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from mvtec_lab.checks import validate
from mvtec_lab.config import Config
from mvtec_lab.engine.listening import address_of, is_local, listen, require_server
from mvtec_lab.review.items import Subject, most_doubtful, read_subject
from mvtec_lab.review.store import Store

FOLDER, FILE = "review", "review.sqlite"  # in the directory that is reviewed


def review(config: Config, run_dir: str | Path) -> dict[str, int]:
    """Serve the review of ``config.dir`` until the command is stopped, and return how many images have which verdict.

    What is decided lies in ``DIR/review/review.sqlite``, and new versions of the data set beside it.

    Raises:
        LabError: there is nothing to review, a library is missing, or the address cannot be used.
    """
    validate(config)
    subject = read_subject(config.dir)
    require_server(config.task)
    import uvicorn

    from mvtec_lab.review.app import Review

    r, out = config.review, subject.directory / FOLDER
    with listen(r.host, r.port, "review") as listening:
        store = Store(out / FILE)
        try:
            port = listening.getsockname()[1]
            token = None if is_local(r.host) else store.fact("token", secrets.token_urlsafe(24))
            order = most_doubtful(subject.items) if r.order == "doubt" else range(len(subject.items))
            app = Review(subject, store, order, out).app(_hosts(r.host), token, f"review_{port}")
            _announce(subject, r.host, port, token, out)
            # No access log: it would hold the token. 5 s: what is under way at a stop is answered.
            settings: dict[str, Any] = {"access_log": False, "log_level": "warning", "server_header": False}
            server = uvicorn.Server(uvicorn.Config(app, lifespan="off", timeout_graceful_shutdown=5, **settings))
            with suppress(KeyboardInterrupt):  # Ctrl-C and SIGTERM, which end a review as it should end
                server.run(sockets=[listening])
            counts = _counts(subject, store)
        finally:
            store.close()
    print(f"reviewed: {', '.join(f'{number} {verdict}' for verdict, number in counts.items())}; kept in {out / FILE}")
    return counts


def _hosts(host: str) -> list[str] | None:
    """Return the names by which a browser may ask for the page; None: any, where all of a machine's addresses serve it.

    A token is needed there, which a page of another site does not know.
    """
    if is_local(host):
        return ["127.0.0.1", "localhost", "::1", host]
    try:
        return None if ip_address(host).is_unspecified else [host.lower()]
    except ValueError:
        return [host.lower()]


def _announce(subject: Subject, host: str, port: int, token: str | None, out: Path) -> None:
    for note in subject.notes:
        print(f"warning: {note}")
    print(f"review of {subject.title}: {len(subject.items)} images, kept in {out}")
    print(f"open {address_of(host, port)}/{f'?token={token}' if token else ''}   (Ctrl-C ends it)", flush=True)


def _counts(subject: Subject, store: Store) -> dict[str, int]:
    shown = {item.key for item in subject.items}
    counts = {"confirmed": 0, "relabelled": 0, "dropped": 0, "open": 0}
    for kept in store.items():
        if kept.path in shown:
            counts[kept.state.verdict] += 1
    return counts
