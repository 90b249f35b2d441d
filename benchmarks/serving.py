"""Measure task=serve: requests per second beside the bare ONNX session, and a soak with broken requests among others.

    python -m benchmarks.serving [--soak 10000] [--threads 1 2] [--backbone mobilenet_v2] [--side 256]

The network has random weights: speed does not depend on them. Both sides judge the same JPEG images one after another,
in blocks that alternate; the service's clients, two threads in a process of their own, take processor time as well.
"""

from __future__ import annotations

import argparse
import io
import json
import os
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
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="of an image, of session and service: one run each"
    )
    parser.add_argument("--requests", type=int, default=200, help="of a block, that are timed")
    parser.add_argument("--pairs", type=int, default=7, help="of blocks in alternation: the session, the service")
    parser.add_argument("--soak", type=int, default=10_000, help="requests of the soak, on a small network; 0: none")
    options = parser.parse_args()
    images = [jpeg(options.side, seed) for seed in range(16)]
    with tempfile.TemporaryDirectory() as folder:
        if options.pairs:
            ckpt = common.fresh(classifier, options.backbone, folder).value
            file = common.fresh(exported, ckpt).value
            blocks = options.pairs, options.requests
            rows = [row for threads in options.threads for row in rates(ckpt, file, images, threads, *blocks)]
            load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
            notes = [
                f"{options.backbone}, JPEG images of {options.side} pixels; {CLIENTS} clients",
                f"median of {options.pairs} blocks of {options.requests} images, in alternation; shares are of the "
                f"session's block before them (least to most); load average at the end {load}",
            ]
            titles = ["threads", "side", "images a second", "share of the session", "p99, ms"]
            common.show("serving", notes, titles, rows)
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


def exported(ckpt: str) -> bytes:
    """Return the ONNX file that task=export writes of a checkpoint, and task=serve runs."""
    from mvtec_lab.problems.model import load_model
    from mvtec_lab.tasks.export import OnnxFile

    return OnnxFile(ckpt, load_model(ckpt)).content


class Bare:
    """Run an ONNX session alone, one image after another, as a loop of a few lines would.

    Args:
        size: pixels a side of what the network sees.
        threads: of the session, as many as the service has.
    """

    def __init__(self, file: bytes, size: int, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.size = size

    def picture(self, data: bytes) -> np.ndarray:
        """Return a file's image as the session takes it."""
        from mvtec_lab.data.content import Content
        from mvtec_lab.data.frame import Frame
        from mvtec_lab.data.images import read_image
        from mvtec_lab.data.transforms import resize

        picture = resize(read_image(Content("image", data), 65_535), Frame(self.size, "squeeze"))
        return np.ascontiguousarray(np.float32(picture / 255).transpose(2, 0, 1)[None])

    def seconds(self, inputs: Sequence[bytes | np.ndarray], count: int) -> list[float]:
        """Return the seconds of each image: of files with decoding and resizing, of pictures without."""
        seconds = []
        for i in range(count):
            began, value = time.perf_counter(), inputs[i % len(inputs)]
            self.session.run(None, {"images": self.picture(value) if isinstance(value, bytes) else value})
            seconds.append(time.perf_counter() - began)
        return seconds


def rates(ckpt: str, file: bytes, images: Sequence[bytes], threads: int, pairs: int, count: int) -> Iterator[list[str]]:
    """Give the rows of the table for a number of threads, of session and service in alternation."""
    bare = Bare(file, 224, threads)
    pictures = [bare.picture(data) for data in images]
    names = ["ONNX session alone, pictures ready", "the same, with decoding and resizing", "task=serve"]
    seconds: list[list[float]] = [[] for _ in names]
    rate: list[list[float]] = [[] for _ in names]
    with served(ckpt, threads) as (_, port):
        timed_requests(port, images, 2 * CLIENTS)  # the first ones allocate
        bare.seconds(pictures, 4)
        for _ in range(pairs):
            for kind, inputs in enumerate((pictures, images)):
                each = bare.seconds(inputs, count)
                rate[kind].append(count / sum(each))
                seconds[kind] += each
            each, wall = timed_requests(port, images, count)
            rate[-1].append(count / wall)
            seconds[-1] += each
    for name, of_rate, of_seconds in zip(names, rate, seconds, strict=True):
        shares = np.array(of_rate) / np.array(rate[0])
        share = f"{np.median(shares):.0%} ({shares.min():.0%} to {shares.max():.0%})"
        late = 1000 * float(np.quantile(of_seconds, 0.99))
        yield [str(threads), name, f"{np.median(of_rate):.1f}", share, f"{late:.0f}"]


@contextmanager
def served(ckpt: str, threads: int, *settings: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve a checkpoint in a process of its own; give the process and its port."""
    with tempfile.TemporaryDirectory() as out:
        words = ["task=serve", f"ckpt={ckpt}", "serve.port=0", f"hydra.run.dir={out}/run", *settings]
        command = [sys.executable, "-m", "mvtec_lab", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
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
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    wrong = [(good[0][:200], 422), (b"no image", 415), (bomb, 413), (b"", 400), (bytes(2_000_000), 413)]
    statuses: Counter[int] = Counter()
    unexpected: list[str] = []
    again: list[int] = []
    memory: list[float] = []

    with served(ckpt, 1, "serve.timeout=2", "serve.max_mb=1") as (process, port):

        def client(number: int) -> None:
            connection = HTTPConnection("127.0.0.1", port)
            for i in range(number, count, CLIENTS):
                body, wanted = wrong[i // 10 % len(wrong)] if i % 10 == 0 else (good[i % len(good)], 200)
                try:
                    status = ask(connection, body)
                except OSError:
                    connection.close()
                    if len(body) > 1_000_000:  # closed before all of it was sent: the answer need not be seen
                        status = wanted
                    else:  # this client came back after serve.timeout, and the connection was closed as idle
                        again.append(i)
                        status = ask(connection, body)
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
        f"not as expected: {len(unexpected)}{f', {unexpected[0]} first' if unexpected else ''}; sent again on a new "
        f"connection, as a client was slower than serve.timeout=2: {len(again)}",
        f"MiB resident, at every tenth and at the end: {', '.join(f'{value:.0f}' for value in memory)}",
        "squeezenet1_1 at 64 pixels, random weights",
    ]
    common.show("soak", notes, ["status", "answers"], rows)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a part of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def resident(pid: int) -> float:
    """Return the memory of a process, MiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


if __name__ == "__main__":
    main()
