"""task=serve answers over HTTP with the numbers of task=predict, and answers whatever else is sent in one line."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SIZE, others_slow
from PIL import Image
from starlette.testclient import TestClient
from test_anomaly_tasks import untrained

from mvtec_lab.config import ServeConfig
from mvtec_lab.engine.listening import listen
from mvtec_lab.engine.model import Model
from mvtec_lab.errors import LabError
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.model import load_model
from mvtec_lab.results import read_csv
from mvtec_lab.serving import app, server
from mvtec_lab.serving.answers import TEXTS, values
from mvtec_lab.serving.app import Service
from mvtec_lab.tasks.serve import about, run_by

Serving = Callable[..., TestClient]


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Serve a checkpoint without a socket: ``serving(ckpt, queue=2)`` -> a client; its ``service`` is the Service.

    PyTorch runs the network, or with ``by_file=True`` what the command takes.
    """
    clients: list[TestClient] = []

    def start(ckpt: Path, batch_size: int = 8, by_file: bool = False, **settings: Any) -> TestClient:
        model = load_model(ckpt)
        runtime = app.Runtime(*run_by(str(ckpt), model)) if by_file else app.BY_TORCH
        service = Service(model, about(model, str(ckpt)), ServeConfig(**settings), batch_size, runtime)
        client = TestClient(service.app(), raise_server_exceptions=False)
        client.service = service  # type: ignore[attr-defined]
        clients.append(client.__enter__())
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def ckpt(tiny_net: str, tmp_path: Path) -> Path:
    return untrained("patchcore", tiny_net, tmp_path)[1]


def png(side: int = 64, seed: int = 0) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (side, side + 6, 3), dtype=np.uint8), "png")


def encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def write_images(folder: Path) -> list[Path]:
    """Images of several formats, sizes and depths."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    sizes = {"a.png": (64, 64), "b.jpg": (90, 30), "c.tif": (33, 65), "d.bmp": (64, 64), "e.webp": (20, 80)}
    for name, size in sizes.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    Image.fromarray(rng.integers(0, 4096, (50, 40), dtype=np.uint16)).save(folder / "f.png")
    turned = Image.fromarray(rng.integers(0, 256, (30, 60, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "g.jpg", exif=exif)
    return sorted(folder.iterdir())


LAYERS = "model.options.layers=[features.relu1,features.relu2]"
BOXES = ["attempt=detect/fcos", "model.unfreeze=0", "model.options.finest=4", "model.options.channels=32"]
MODELS = {
    "anomaly": ["attempt=patchcore", LAYERS, "data.fit=letterbox"],
    "classifier": ["attempt=base"],
    "tiles": ["attempt=patchcore", LAYERS, "data.tile=24"],
    "masks": ["attempt=segment/fpn", LAYERS, "model.options.channels=8", "data.fit=letterbox"],
    "boxes": [*BOXES, "data.image_size=64", "optimizer.lr=3e-3", "trainer.max_epochs=8"],
}


def mark_something(path: Path) -> None:
    """Lower the thresholds of a model of two epochs, so that its masks and boxes are no empty ones."""
    model = load_model(path)
    images = torch.rand(1, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    (outputs,) = problem_of(model.method).outputs(model, images)
    model.threshold = 0.0
    model.map_threshold = float(outputs["map"].median()) if "map" in outputs else None
    model.save(path)


@pytest.mark.parametrize("kind", others_slow(list(MODELS), "classifier"))
def test_answers_are_the_rows_of_predict(kind: str, lab, serving: Serving, tmp_path: Path) -> None:
    assert lab(*MODELS[kind], "hydra.run.dir=run") == 0
    if kind in ("masks", "boxes"):
        mark_something(tmp_path / "run/best.ckpt")
    paths, marked = write_images(tmp_path / "new"), 0
    alone = [] if kind == "tiles" else ["data.batch_size=1"]  # other images of a batch move the last digits
    assert lab("task=predict", "ckpt=run", "source=new", "hydra.run.dir=out", *alone) == 0
    rows = {Path(row["path"]).name: row for row in read_csv(tmp_path / "out/predictions.csv")}
    assert len(rows) == len(paths)
    client = serving(tmp_path / "run/best.ckpt")
    files = [("image", (path.name, path.read_bytes())) for path in paths]
    together = client.post("/predict?map=true", files=files).json()["results"]
    for path, result in zip(paths, [dict(answer) for answer in together], strict=True):
        by_itself = client.post("/predict?map=true", content=path.read_bytes()).json()
        assert {**by_itself, "name": path.name} == result
        row = rows[path.name]
        del row["path"]
        boxes = result.pop("boxes", None)
        if boxes is not None:
            assert row.pop("boxes") == str(len(boxes))
            assert boxes == json.loads((tmp_path / f"out/found/{path.name}.json").read_text())["boxes"]
        shown = {key: result.pop(key) for key in ("mask", "overlay") if key in result}
        with Image.open(path) as image:
            size = image.size if path.name != "g.jpg" else image.size[::-1]
        assert (result.pop("name"), (result.pop("width"), result.pop("height"))) == (path.name, size)
        assert result == values({key: value for key, value in row.items() if value != "" or key in TEXTS})
        for folder in ("maps", "found"):
            drawn = tmp_path / "out" / folder / f"{path.name}.jpg"
            if drawn.exists():
                assert base64.b64decode(shown["overlay"]) == drawn.read_bytes()
        if "mask" in shown:
            mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["mask"]))))
            marked += int(mask.any())
            written = tmp_path / f"out/found/{path.name}.png"
            assert not written.exists() or (mask == np.asarray(Image.open(written))).all()
            assert mask.shape == size[::-1]
            assert set(np.unique(mask)) <= {0, 255}
            assert row["prediction"] != "good" or not mask.any()
        marked += len(boxes or [])
    assert ("mask" in shown) == (kind in ("anomaly", "tiles", "masks"))
    assert ("overlay" in shown) == (kind != "classifier")
    assert marked or kind == "classifier"  # else nothing was compared
    by_file = serving(tmp_path / "run/best.ckpt", by_file=True)
    assert by_file.get("/healthz").json() == {"status": "ok", "runtime": "onnxruntime"}
    for answer, other in zip(together, by_file.post("/predict?map=true", files=files).json()["results"], strict=True):
        same_words_and_near_numbers(answer, other)


def same_words_and_near_numbers(answer: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in answer.items():
        if isinstance(value, float):
            assert other[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
        elif key not in ("probabilities", "boxes", "mask", "overlay"):
            assert other[key] == value, key


@pytest.mark.slow
def test_what_is_unlike_anything_in_training_is_unknown(lab, serving: Serving, tmp_path: Path) -> None:
    assert lab("attempt=base", "hydra.run.dir=run") == 0
    assert lab("task=threshold", "ckpt=run", "false_rejects=0.4", "hydra.run.dir=strict") == 0
    checked = np.repeat(np.indices((SIZE, SIZE)).sum(0)[..., None] % 2 * 255, 3, axis=2).astype(np.uint8)
    answers = []
    for by_file in (False, True):
        client = serving(tmp_path / "strict/best.ckpt", by_file=by_file)
        assert client.get("/healthz").json()["runtime"] == ("onnxruntime" if by_file else "pytorch")
        answers.append(client.post("/predict", content=encoded(checked, "png")).json())
        assert answers[-1]["decision"] == "UNKNOWN"
        assert answers[-1]["distance"] > answers[-1]["unknown_above"]
    same_words_and_near_numbers(*answers)


def test_a_model_that_no_file_can_run_is_run_by_pytorch_and_this_is_said(
    ckpt: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise LabError("model.method=odd has no ONNX file: it is odd")

    monkeypatch.setattr("mvtec_lab.tasks.export.to_onnx", refused)
    client = serving(ckpt, by_file=True)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said.endswith("model.method=odd has no ONNX file: it is odd")
    health = client.get("/healthz").json()
    assert health == {"status": "ok", "runtime": "pytorch", "why": "model.method=odd has no ONNX file: it is odd"}
    assert client.post("/predict", content=png()).status_code == 200


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes whose header says many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "image is empty: send an image"),
        (b"hello", 415, "is no image that is read here: send .png, .jpg"),
        (b"%PDF-1.7 " + bytes(100), 415, "is no image"),
        (png()[:200], 422, "image cannot be read"),
        (png()[:60] + b"??" + png()[62:], 422, "image cannot be read"),
        (b"\xff\xd8\xff" + bytes(50), 422, "image cannot be read"),
        (bomb(60_000, 60_000), 413, "image has 60000 x 60000 pixels, more than 89,478,485"),
        (encoded(np.zeros((9, 9), np.float32), "tiff"), 422, "image has 32-bit pixels"),
        (bytes(200_001), 413, "the request has more than serve.max_mb=0.2 MB"),
    ],
)
def test_what_is_no_image_is_answered_in_a_line(
    body: bytes, status: int, said: str, ckpt: Path, serving: Serving
) -> None:
    client = serving(ckpt, max_mb=0.2)
    response = client.post("/predict", content=body)
    assert (response.status_code, [*response.json()]) == (status, ["error"])
    assert said in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert client.post("/predict", content=png()).status_code == 200


def test_a_body_without_a_length_is_limited_as_well(ckpt: Path, serving: Serving) -> None:
    client, sent = serving(ckpt, max_mb=0.2), []

    def chunks() -> Iterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield bytes(10_000)

    assert client.post("/predict", content=chunks()).status_code == 413
    assert client.service.held == 0  # type: ignore[attr-defined]


def test_a_broken_file_of_a_form_is_no_reason_to_answer_none_of_the_others(ckpt: Path, serving: Serving) -> None:
    client = serving(ckpt, queue=3)
    files = [("image", ("../../etc/a.png", png())), ("x", ("b\n.png", b"no image")), ("image", ("c.png", png(seed=2)))]
    response = client.post("/predict", files=files)
    first, broken, last = response.json()["results"]
    assert response.status_code == 200
    assert (first["name"], last["name"]) == ("a.png", "c.png")
    assert first["score"] != last["score"]
    assert broken == {"name": "b%0A.png", "error": broken["error"], "status": 415}
    assert "decision" not in broken
    many = client.post("/predict", files=[("image", (f"{i}.png", png())) for i in range(9)])
    assert (many.status_code, many.json()) == (
        413,
        {"error": "these are 4 images, more than serve.queue=3 at once: send fewer"},
    )


TEXT_FIELD = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        ({"content": TEXT_FIELD, "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "no file"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"--x\r\nbad", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "form"),
        ({"content": png(), "params": {"map": "perhaps"}}, 400, "map=perhaps is neither true nor false"),
    ],
)
def test_a_request_that_is_none_is_answered_in_a_line(
    settings: dict[str, Any], status: int, said: str, ckpt: Path, serving: Serving
) -> None:
    response = serving(ckpt).post("/predict", **settings)
    assert response.status_code == status
    assert said in response.json()["error"]


def test_other_addresses_and_methods_are_answered_in_a_line(ckpt: Path, serving: Serving) -> None:
    client = serving(ckpt)
    assert client.get("/nothing").json() == {"error": "there is no /nothing here: /docs says what there is"}
    wrong = client.get("/predict")
    assert (wrong.status_code, wrong.headers["allow"], [*wrong.json()]) == (405, "POST", ["error"])


def test_a_slow_request_is_answered(ckpt: Path, serving: Serving) -> None:
    client = serving(ckpt, timeout=0.05)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not sent_body:
            sent_body.append(1)
            return {"type": "http.request", "body": png()[:100], "more_body": True}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    sent_body: list[int] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [],
        "app": client.app,
    }
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 408
    assert b"serve.timeout=0.05" in sent[1]["body"]
    assert client.service.held == 0  # type: ignore[attr-defined]


def test_more_than_can_wait_is_told_when_to_come_back(
    ckpt: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, judge = threading.Event(), threading.Event(), app.judge

    def slow(*args: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return judge(*args)

    monkeypatch.setattr(app, "judge", slow)
    client = serving(ckpt, queue=2)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(client.post("/predict", files=[("a", png()), ("b", png())])))
    first.start()
    assert begun.wait(10)
    refused = client.post("/predict", content=png())
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json() == {"error": "2 images wait already, 2 at most: try again in 1 s"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"status": "full", "room": 0})
    go_on.set()
    first.join()
    assert [len(answer.json()["results"]) for answer in answers] == [2]
    assert client.post("/predict", content=png()).status_code == 200
    assert client.get("/readyz").json() == {"status": "ok", "room": 2}


def test_what_the_model_cannot_judge_ends_nothing(
    ckpt: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge = app.judge

    def choosy(model: Model, cuts: list[Any], *others: Any) -> Any:
        if any(not cut.picture.any() for cut in cuts):
            raise LabError("it is black")
        return judge(model, cuts, *others)

    monkeypatch.setattr(app, "judge", choosy)
    black = encoded(np.zeros((9, 9, 3), np.uint8), "png")
    client = serving(ckpt)
    results = client.post("/predict", files=[("a", png()), ("b", black), ("c", png())]).json()["results"]
    assert [r.get("status", 200) for r in results] == [200, 422, 200]
    monkeypatch.setattr(app, "judge", lambda *_: 1 / 0)
    failed = client.post("/predict", content=png())
    assert (failed.status_code, [*failed.json()]) == (500, ["error"])
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.setattr(app, "judge", judge)
    assert client.post("/predict", content=png()).status_code == 200
    assert client.get("/healthz").json() == {"status": "ok", "runtime": "pytorch"}


def test_it_is_counted_for_prometheus(ckpt: Path, serving: Serving) -> None:
    client = serving(ckpt)
    for body in (png(), png(), b"?"):
        client.post("/predict", content=body)
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    text = response.text
    assert 'mvtec_lab_requests_total{status="200"} 2.0' in text
    assert 'mvtec_lab_requests_total{status="415"} 1.0' in text
    assert re.search(r'mvtec_lab_images_total\{decision="(OK|REJECT)"\} 2.0', text)
    assert "mvtec_lab_images_inside 0.0" in text
    assert "mvtec_lab_request_seconds_count 2.0" in text
    assert "mvtec_lab_model_seconds_count 2.0" in text


def test_its_page_needs_no_network_and_its_schema_is_what_it_answers(ckpt: Path, serving: Serving) -> None:
    from mvtec_lab.serving.schema import Result

    client = serving(ckpt)
    page = client.get("/").text
    assert "<title>mvtec_lab" in page
    assert "`" not in json.dumps(client.get("/openapi.json").json()["components"])  # the page shows them as they are
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    schema = client.get("/openapi.json").json()
    answered = schema["paths"]["/predict"]["post"]["responses"]
    assert {"200", "400", "408", "413", "415", "422", "503"} == {*answered}
    result = client.post("/predict?map=1", content=png()).json()
    assert {*result} <= {*Result.model_fields}
    Result.model_validate(result, strict=True)
    model = client.get("/model").json()
    assert model["attempt"] is None  # a file without its run
    assert (model["method"], model["classes"], model["threshold"]) == ("patchcore", ["good", "defect"], 0.5)
    assert len(model["sha256"]) == 64


def test_the_command_serves_until_it_is_stopped(
    lab, ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(app: Any, listening: socket.socket, timeout: float) -> None:
        assert (listening.getsockname()[0], timeout) == ("127.0.0.1", 30)
        with TestClient(app) as client:
            assert client.post("/predict", content=png()).status_code == 200
            assert client.post("/predict", content=b"?").status_code == 415

    monkeypatch.setattr(server, "serve", serve)
    assert lab("task=serve", f"ckpt={ckpt}", "serve.port=0") == 0
    said = capsys.readouterr().out
    assert re.search(r"patchcore of .*best.ckpt answers at http://127.0.0.1:\d+/predict +\(run by onnxruntime", said)
    assert re.search(r"answered 2 request\(s\); images: 1 (OK|REJECT)", said)


def test_what_keeps_it_from_serving_is_a_line(
    lab, ckpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert lab("task=serve", f"ckpt={ckpt}", f"serve.port={port}") == 2
    assert re.search(
        rf"serve.host=127.0.0.1 serve.port={port} cannot be used \(.*\): give another serve.port",
        capsys.readouterr().err,
    )
    assert lab("task=serve") == 2
    assert "ckpt" in capsys.readouterr().err
    assert lab("task=serve", f"ckpt={ckpt}", "serve.queue=0") == 2
    assert "serve.queue=0" in capsys.readouterr().err
    assert lab("attempt=base", "serve.port=8001") == 2
    assert "serve.port=8001 does nothing for task=train" in capsys.readouterr().err
    find = sys.modules["mvtec_lab.engine.listening"].find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr("mvtec_lab.engine.listening.find_spec", lambda name: None if name == "fastapi" else find(name))
    assert lab("task=serve", f"ckpt={ckpt}") == 2
    assert 'task=serve needs an extra: pip install "mvtec_lab[serve]"' in capsys.readouterr().err


def test_the_second_part_of_an_answer_does_not_wait_for_the_first_to_be_acknowledged() -> None:
    with listen("127.0.0.1", 0, "serve") as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
        with client, accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.fixture
def process(tiny_net: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A real service of a network that needs no registered backbone, and its port."""
    ckpt = untrained("autoencoder", tiny_net, tmp_path)[1]
    words = [f"ckpt={ckpt}", "serve.port=0", "serve.timeout=2", "serve.queue=200", f"hydra.run.dir={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "mvtec_lab", "task=serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        try:
            for line in running.stdout:
                if found := re.search(r"answers at http://127.0.0.1:(\d+)/predict", line):
                    break
            else:
                raise AssertionError("it did not start")
            yield running, int(found[1])
        finally:
            running.kill()


def raw(port: int, body: bytes, whole: bool = True) -> socket.socket:
    """Begin a request, and send its body, or half of it."""
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    client.sendall(head + (body if whole else body[: len(body) // 2]))
    return client


def answered(client: socket.socket) -> tuple[int, dict[str, Any]]:
    """Return status and content of what is answered; 0 where the connection is closed without an answer."""
    with client, client.makefile("rb") as file:
        status = file.readline().split()
        if not status:
            return 0, {}
        length = 0
        for line in iter(file.readline, b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return int(status[1]), json.loads(file.read(length))


@pytest.mark.slow
def test_what_was_accepted_is_answered_when_the_process_is_stopped(process: tuple[subprocess.Popen[str], int]) -> None:
    running, port = process
    body = png(300)
    waiting = [raw(port, body) for _ in range(40)]
    slow = raw(port, body, whole=False)
    first = answered(waiting.pop())  # by now the others are inside, or will be
    running.send_signal(signal.SIGTERM)
    statuses = [first[0], *(answered(client)[0] for client in waiting)]
    slow.sendall(body[len(body) // 2 :])
    assert statuses == [200] * 40
    assert answered(slow)[0] in (200, 408)
    assert running.stdout is not None
    said = running.stdout.read()
    assert running.wait(30) == 0
    assert re.search(r"answered 4[01] request\(s\)", said)
    with pytest.raises(ConnectionRefusedError):
        raw(port, body)


@pytest.mark.slow
def test_broken_huge_and_slow_requests_among_others(process: tuple[subprocess.Popen[str], int]) -> None:
    _, port = process
    body = png(300)
    silent = socket.create_connection(("127.0.0.1", port), timeout=30)  # no request at all
    slow = raw(port, body, whole=False)
    huge = socket.create_connection(("127.0.0.1", port), timeout=30)
    huge.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99000000000\r\n\r\n")
    gone = raw(port, body, whole=False)
    gone.close()
    noise = socket.create_connection(("127.0.0.1", port), timeout=30)
    noise.sendall(b"\x16\x03\x01" + bytes(range(256)) + b"\r\n\r\n")
    for sent, status in ((body, 200), (body[:500], 422), (bomb(60_000, 60_000), 413), (b"x", 415), (body, 200)):
        assert answered(raw(port, sent))[0] == status
    assert answered(huge)[0] == 413
    assert answered(slow) == (
        408,
        {"error": "the request did not arrive within serve.timeout=2 seconds: send it faster"},
    )
    assert silent.recv(1) == b""  # closed
    with noise:
        assert noise.recv(12) == b"HTTP/1.1 400"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        with client.makefile("rb") as file:
            assert b'"room":200' in file.read()
