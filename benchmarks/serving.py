"""Measure task=serve: requests per second beside the bare ONNX session, and a soak with broken requests among others.

    python -m benchmarks.serving [--soak 10000] [--backbone mobilenet_v2] [--side 256]

The network has random weights: speed does not depend on them. Both sides judge the same JPEG images, decoded, resized
and judged one after another; the service's clients, two threads in a process of their own, take processor time as well.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import common

CLIENTS = 2  # as the cores: more wait in the queue, and show nothing else


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--side", type=int, default=256, help="of the images, pixels")
    parser.add_argument("--requests", type=int, default=300, help="that are timed")
    parser.add_argument("--soak", type=int, default=10_000, help="requests of the soak, on a small network; 0: none")
    options = parser.parse_args()
    images = [jpeg(options.side, seed) for seed in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        ckpt = common.fresh(classifier, options.backbone, folder).value
        bare, forward = common.fresh(session, ckpt, images, options.requests).value
        with served(ckpt) as (_, port):
            seconds, wall = timed_requests(port, images, options.requests)
        rate = len(seconds) / wall
        late = 1000 * float(np.quantile(seconds, 0.99))
        rows = [
            ["ONNX session alone, pictures ready", f"{1 / forward:.1f}", ""],
            ["the same with decoding and resizing", f"{1 / bare:.1f}", ""],
            ["task=serve", f"{rate:.1f} ({rate * bare:.0%} of the second; target 70%)", f"{late:.0f}"],
        ]
        notes = [f"{options.backbone}, JPEG images of {options.side} pixels a side, {CLIENTS} clients"]
        common.show("serving", notes, ["side", "images a second", "p99, ms"], rows)
        if options.soak:
            small = common.fresh(classifier, "squeezenet1_1", folder, 64).value
            soak(small, options.soak)


def classifier(backbone: str, folder: str, size: int = 224) -> str:
    """Write the checkpoint of a classifier with random weights, and return its path."""
    from mvtec_lab import DefectClassifier
    from mvtec_lab.engine.model import Model

    path = Path(folder, f"{backbone}.ckpt")
    classes = ["good", "broken_large", "broken_small", "contamination"]
    module = DefectClassifier(backbone, len(classes), weights=None).eval()
    Model(module, "classifier", classes, size, 65_535, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).save(path)
    return str(path)


def jpeg(side: int, seed: int) -> bytes:
    """Return an image that is no noise, as its file would be larger than any photograph's."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()


def session(ckpt: str, images: Sequence[bytes], count: int) -> tuple[float, float]:
    """Return seconds an image that the bare ONNX session takes, with decoding and resizing and without."""
    import onnxruntime
    import torch

    from mvtec_lab.data.content import Content
    from mvtec_lab.engine.onnx import Normalised, to_onnx
    from mvtec_lab.problems import problem_of
    from mvtec_lab.problems.model import load_model
    from mvtec_lab.serving.answers import seen

    model = load_model(ckpt)
    network = problem_of(model.method).exported(model).eval()
    with torch.no_grad():
        file = to_onnx(Normalised(network, model.mean, model.std), network.outputs[:1], model.image_size, {}, ckpt)
    run = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def picture(data: bytes) -> np.ndarray:
        cut, _ = seen(Content("image", data), model)
        return np.ascontiguousarray(np.float32(cut.picture / 255).transpose(2, 0, 1)[None])

    def pace(inputs: Sequence[bytes] | Sequence[np.ndarray], ready: bool) -> float:
        began = time.perf_counter()
        for i in range(count):
            value = inputs[i % len(inputs)]
            run.run(None, {"images": value if ready else picture(value)})  # type: ignore[arg-type]
        return (time.perf_counter() - began) / count

    pictures = [picture(data) for data in images]
    pace(pictures[:2], True)
    return pace(images, False), pace(pictures, True)


@contextmanager
def served(ckpt: str, *settings: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve a checkpoint in a process of its own; give the process and its port."""
    with tempfile.TemporaryDirectory() as out:
        words = ["task=serve", f"ckpt={ckpt}", "serve.port=0", f"hydra.run.dir={out}/run", *settings]
        command = [sys.executable, "-m", "mvtec_lab", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://127.0.0.1:(\d+)/predict", line)
            if found is None:
                raise RuntimeError(f"task=serve did not start: {line}")
            try:
                yield process, int(found[1])
            finally:
                process.terminate()
                print(process.stdout.read().strip(), file=sys.stderr)


def ask(connection: HTTPConnection, body: bytes) -> int:
    """Return the status of an answer; it is read whole."""
    connection.request("POST", "/predict", body)
    response = connection.getresponse()
    text = response.read()
    if response.status == 200 and "prediction" not in json.loads(text):
        raise RuntimeError(f"an answer without a prediction: {text[:200]!r}")
    return response.status


def timed_requests(port: int, images: Sequence[bytes], count: int) -> tuple[list[float], float]:
    """Return the seconds of each request, and of all of them."""
    seconds: list[float] = []

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port)
        for i in range(number, count, CLIENTS):
            began = time.perf_counter()
            if (status := ask(connection, images[i % len(images)])) != 200:
                raise RuntimeError(f"status {status}")
            seconds.append(time.perf_counter() - began)

    ask(HTTPConnection("127.0.0.1", port), images[0])
    began = time.perf_counter()
    together(client, CLIENTS)
    return seconds, time.perf_counter() - began


def together(client: object, count: int) -> None:
    """Run a function in threads, each with its number."""
    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def soak(ckpt: str, count: int) -> None:
    """Send many requests, every tenth of them broken, huge or slow, and print statuses and memory."""
    good = [jpeg(96, seed) for seed in range(8)]
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    wrong = [(good[0][:200], 422), (b"no image", 415), (bomb, 413), (b"", 400), (bytes(2_000_000), 413)]
    statuses: Counter[int] = Counter()
    unexpected: list[str] = []
    memory: list[float] = []

    with served(ckpt, "serve.timeout=2", "serve.max_mb=1") as (process, port):

        def client(number: int) -> None:
            connection = HTTPConnection("127.0.0.1", port)
            for i in range(number, count, CLIENTS):
                body, wanted = wrong[i // 10 % len(wrong)] if i % 10 == 0 else (good[i % len(good)], 200)
                try:
                    status = ask(connection, body)
                except OSError:  # closed before all of a huge body was sent: the answer need not be seen
                    connection.close()
                    status = wanted if len(body) > 1_000_000 else 0
                statuses[status] += 1
                if status != wanted:
                    unexpected.append(f"{status} in place of {wanted}")
                if i % (count // 10) == 0:
                    memory.append(resident(process.pid))

        def slow(number: int) -> None:
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", port), timeout=30) as half:
                    half.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n" + good[0][:100])
                    statuses[int(half.recv(100).split()[1])] += 1

        began = time.perf_counter()
        beside = threading.Thread(target=slow, args=(0,))
        beside.start()
        together(client, CLIENTS)
        wall = time.perf_counter() - began
        beside.join()
        memory.append(resident(process.pid))
    rows = [[str(status), f"{number:,}"] for status, number in sorted(statuses.items())]
    notes = [
        f"{count:,} requests in {wall:.0f} s by {CLIENTS} clients, and 20 that were never sent to their end (408)",
        f"not as expected: {len(unexpected)}{f', {unexpected[0]} first' if unexpected else ''}",
        f"MiB resident, at every tenth and at the end: {', '.join(f'{value:.0f}' for value in memory)}",
        "squeezenet1_1 at 64 pixels, random weights",
    ]
    common.show("soak", notes, ["status", "answers"], rows)


def resident(pid: int) -> float:
    """Return the memory of a process, MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


if __name__ == "__main__":
    main()
