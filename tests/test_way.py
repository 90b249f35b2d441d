"""The way of docs/line.md, command by command as the page has it, on tiny images."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_product
from test_review import WRITES, post, start

from mvtec_lab.cli import main
from mvtec_lab.results import read_csv

PAGE = Path(__file__).resolve().parents[1] / "docs/line.md"
LAB = "python -m mvtec_lab "
TINY = {"data.image_size=224": "data.image_size=64"}
NETWORK = ["model.backbone=shufflenet_v2_x1_0", "model.weights=SAMPLE_V1", "cache.dir=null"]
TYPES = ("broken_large", "broken_small", "contamination")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bash") is None, reason="the page's first step is of bash"),
]


def steps() -> Iterator[str]:
    """Yield the commands of the way, in their order; what is no command of the lab as a whole block."""
    way = PAGE.read_text(encoding="utf-8").split("\n## The way\n")[1].split("\n## ")[0]
    for block in re.findall(r"^```sh\n(.*?)^```$", way, re.MULTILINE | re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        yield from lines if any(line.startswith(LAB) for line in lines) else [block]


def review(predictions: Path) -> str:
    """Review twenty images as the page says, and return the command that it then shows."""
    process, address = start(predictions)
    try:
        with urllib.request.urlopen(f"{address}api/items") as answer:
            items = json.load(answer)["items"]
        for place, item in enumerate(items[:20]):
            truth = item["name"].split("/")[0]
            said = {"action": "relabel", "label": truth} if truth != item["label"] else {"action": "confirm"}
            said |= {"version": 0, "person": "somebody", "request": f"request {place}"}
            assert post(address, f"api/items/{item['id']}", said)["item"]["verdict"] != "open"
        return post(address, "api/versions", {})["command"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MVTec's bottle, as many images under the same names; and a folder in which the way begins."""
    write_product(tmp_path / "mvtec/bottle", {"good": 6, **dict.fromkeys(TYPES, 14)}, train_good=130, size=64)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here/line"


def test_every_step_of_the_way_runs(line: Path, capsys: Any) -> None:
    served: subprocess.Popen[str] | None = None
    ran, shown, address = [], "", ""
    try:
        for step in steps():
            words = shlex.split(step)
            task = next((word[5:] for word in words if word.startswith("task=")), "train")
            if not step.startswith((LAB, "curl ")):
                here = step.replace("/data/mvtec", str(line.parents[1] / "mvtec")).replace(
                    "python ", f"{sys.executable} "
                )
                subprocess.run(["bash", "-ec", here], check=True)
            elif step.startswith("curl "):
                assert words[-1] == "http://127.0.0.1:8000/predict"
                request = urllib.request.Request(
                    f"{address}predict", Path(words[2].removeprefix("@")).read_bytes(), WRITES
                )
                with urllib.request.urlopen(request) as answer:
                    assert json.load(answer)["decision"] in ("OK", "REJECT", "UNKNOWN")
            elif task == "review":
                shown = review(Path("line/new"))
            elif task == "serve":
                served, address = serve(words)
            else:
                typed = [TINY.get(word, word) for word in words[3:]]
                if "version-1" in step:  # what the page shows is what the text says
                    of_text = [*(word for word in typed if not word.startswith("hydra.run.dir=")), *NETWORK]
                    assert {*shlex.split(shown)[3:]} == {*of_text}
                status = main([*typed, *(NETWORK if task == "train" else [])])
                assert status in ((0, 3) if task == "monitor" else (0,)), (step, capsys.readouterr().err)
            ran.append(task if step.startswith(LAB) else words[0])
    finally:
        if served is not None:
            served.send_signal(signal.SIGTERM)
            served.communicate()
    assert {"train", "threshold", "predict", "review", "compare", "export", "serve", "curl"} <= {*ran}
    changes = read_csv(line / "new/review/version-1/CHANGES.csv")
    assert [row["change"] for row in changes] == ["added"] * 20
    counts = [json.loads((line / run / "result.json").read_text())["counts"] for run in ("first", "second")]
    assert counts[0]["test"] == counts[1]["test"]
    assert sum(counts[1]["train"].values()) + sum(counts[1].get("val", {}).values()) == 20 + sum(
        sum(counts[0].get(part, {}).values()) for part in ("train", "val")
    )
    assert {row["attempt"] for row in read_csv(line / "both/summary.csv")} == {"lab/where", "lab/where on version-1"}
    assert (line / "exported/SHA256SUMS").is_file()


def serve(words: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Start the service as the page does, but at a free port; return it and its address when it answers."""
    words = [word.replace("serve.port=8000", "serve.port=0") for word in words[1:]]
    process = subprocess.Popen(
        [sys.executable, *words, "hydra.run.dir=log"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    for text in process.stdout:
        said.append(text)
        if found := re.search(r"http://[\d.:]+", text):
            return process, f"{found[0]}/"
    raise AssertionError("".join(said))


def test_the_way_is_short() -> None:
    lines = PAGE.read_text(encoding="utf-8").split("\n## The way\n")[1].split("\n## ")[0].splitlines()
    assert len(lines) < 120
