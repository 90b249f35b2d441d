"""task=review: what people decide of predictions is on the disk before it is answered, and becomes a new data set."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_product
from PIL import Image

from mvtec_lab.data.layouts import read_folder
from mvtec_lab.errors import DiskFullError, LabError
from mvtec_lab.results import read_csv, write_csv
from mvtec_lab.review.items import most_doubtful, read_subject
from mvtec_lab.review.names import class_name
from mvtec_lab.review.store import NothingToUndoError, Store

testclient = pytest.importorskip("starlette.testclient")
WRITES = {"x-review": "1"}
ME, OTHER = "person-me", "person-other"


@pytest.fixture
def run_dir(product: Path, tmp_path: Path) -> Path:
    """A run's directory, as far as a review reads it: its settings, its split, its predictions."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"seed: 0\ndata: {{name: folder, root: {product}, category: null}}\nsplit: {{protocol: holdout}}\n"
        "model: {method: classifier}\n"
    )
    samples = read_folder(product).samples
    splits = {s.path: ("train", "val", "test")[max(0, int(Path(s.path).stem) - 3) % 3] for s in samples}
    rows = [{"path": s.path, "split": splits[s.path] if s.path.startswith("test") else ""} for s in samples]
    write_csv(folder / "samples.csv", rows, ("path", "split"))
    predicted = []
    for s in (s for s in samples if s.path.startswith("test") and splits[s.path] != "train"):
        shares = dict.fromkeys(("good", "crack", "hole"), 0.1) | {s.label: 0.8}
        predicted.append(
            {"split": splits[s.path], "path": s.path, "label": s.label, "prediction": s.label}
            | {f"prob_{name}": share for name, share in shares.items()}
        )
    wrong = next(row for row in predicted if row["path"] == "test/hole/005.png")
    wrong |= {"prediction": "crack", "prob_hole": 0.05, "prob_crack": 0.9, "prob_good": 0.05}
    write_csv(folder / "predictions.csv", predicted, list(predicted[0]))
    return folder


@pytest.fixture
def predictions(run_dir: Path, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What task=predict leaves of four new images, two of them with a found mask; one is of the data set already."""
    monkeypatch.chdir(tmp_path)
    write_product(tmp_path / "scratch", {"good": 2, "crack": 2}, train_good=0, size=24)
    new = tmp_path / "new"
    (tmp_path / "scratch" / "test").rename(new)
    for path in new.rglob("*.png"):  # the same seed drew the data set
        Image.fromarray(np.rot90(np.asarray(Image.open(path)))).save(path)
    (new / "copy").mkdir()
    (new / "copy" / "again.png").write_bytes((product / "test/hole/005.png").read_bytes())
    folder = tmp_path / "predictions"
    (folder / "found" / "crack").mkdir(parents=True)
    mask = np.zeros((24, 24), np.uint8)
    mask[4:8, 2:20] = 255
    Image.fromarray(mask).save(folder / "found/crack/000.png.png")
    Image.fromarray(np.full((48, 48, 3), 90, np.uint8)).save(folder / "found/crack/000.png.jpg")
    scores = {
        "good/000.png": 0.1,
        "good/001.png": 0.45,
        "crack/000.png": 0.9,
        "crack/001.png": 0.52,
        "copy/again.png": 0.8,
    }
    rows = [
        {"path": f"new/{name}", "prediction": "crack" if score > 0.5 else "good", "score": score, "threshold": 0.5}
        for name, score in scores.items()
    ]
    write_csv(folder / "predictions.csv", rows, list(rows[0]))
    about = {
        "ckpt": str(run_dir / "best.ckpt"),
        "source": "new",
        "root": str(new),
        "directory": str(tmp_path),
        "classes": ["good"],
    }
    (folder / "predicted.json").write_text(json.dumps(about))
    return folder


@contextlib.contextmanager
def served(directory: Path, **guard: Any) -> Iterator[Any]:
    from mvtec_lab.review.app import Review

    subject, store = read_subject(str(directory)), Store(directory / "review" / "review.sqlite")
    app = Review(subject, store, most_doubtful(subject.items), directory / "review").app(**guard)
    with testclient.TestClient(app, base_url="http://127.0.0.1:8001") as client:
        yield client
    store.close()


@pytest.fixture
def client(run_dir: Path) -> Iterator[Any]:
    with served(run_dir) as client:
        yield client


def numbers(client: Any) -> dict[str, int]:
    return {item["name"]: item["id"] for item in client.get("/api/items").json()["items"]}


_names = iter(range(10**6))


def act(client: Any, number: int, action: str, version: int, person: str = ME, **more: Any) -> Any:
    said = {"action": action, "version": version, "person": person, "request": f"request-{next(_names)}", **more}
    return client.post(f"/api/items/{number}", json=said, headers=WRITES)


def undo(client: Any, person: str = ME) -> Any:
    return client.post("/api/undo", json={"person": person, "request": f"request-{next(_names)}"}, headers=WRITES)


def export(client: Any) -> dict[str, Any]:
    answer = client.post("/api/versions", json={}, headers=WRITES)
    assert answer.status_code == 200, answer.text
    return answer.json()


# What is shown, and in which order


def test_a_label_that_the_model_contradicts_comes_first(client: Any) -> None:
    overview = client.get("/api/items").json()
    assert overview["items"][0]["name"] == "test/hole/005.png"
    assert overview["classes"] == ["good", "crack", "hole"]
    assert overview["has"] == {"maps": False, "masks": False}
    first = client.get(f"/api/items/{overview['items'][0]['id']}").json()
    assert (first["width"], first["height"], first["shown"]) == (24, 24, [24, 24])
    assert sum(first["mask"][1::2]) == 25  # the data set's own
    assert first["said"]["prediction"] == "crack"


def test_new_images_come_by_their_distance_from_the_threshold(predictions: Path) -> None:
    rows = read_csv(predictions / "predictions.csv")
    with served(predictions) as client:
        items = client.get("/api/items").json()["items"]
        assert [Path(item["name"]).name for item in items][:2] == ["001.png", "001.png"]
        assert len(items) == 5
        assert client.get("/api/items").json()["has"] == {"maps": True, "masks": True}
        whole = client.get(f"/api/items/{numbers(client)['crack/000.png']}").json()
        assert sum(whole["found"][1::2]) == 4 * 18
        assert client.get(f"/api/items/{whole['id']}/drawn").headers["content-type"] == "image/jpeg"
    decisions = {"good/000.png": "UNKNOWN", "crack/000.png": "REVIEW"}
    decided = [{"decision": decisions.get(row["path"].removeprefix("new/"), "OK"), **row} for row in rows]
    write_csv(predictions / "predictions.csv", decided, list(decided[0]))
    with served(predictions) as client:  # what the decision leaves to a person
        assert [item["name"] for item in client.get("/api/items").json()["items"]][:2] == list(decisions)


def test_a_run_s_scores_are_compared_with_the_threshold_that_was_chosen(run_dir: Path) -> None:
    rows = read_csv(run_dir / "predictions.csv")
    scores = [{**row, "score": 0.9 if "004" in row["path"] else 0.2} for row in rows]
    columns = ["split", "path", "label", "prediction", "score"]
    write_csv(run_dir / "predictions.csv", [{name: row[name] for name in columns} for row in scores], columns)
    (run_dir / "operating.json").write_text('{"reject": 0.25}')
    items = {item.key: item for item in read_subject(str(run_dir)).items}
    assert items["test/good/004.png"].doubt == (2, pytest.approx(0.25 - 0.9))
    assert items["test/hole/005.png"].doubt == (2, pytest.approx(0.2 - 0.25))
    assert items["test/hole/005.png"].said["threshold"] == "0.25"


def test_pictures_of_any_depth_are_shown_small(run_dir: Path, product: Path) -> None:
    Image.fromarray(np.arange(2000 * 3000, dtype=np.uint16).reshape(2000, 3000)).save(product / "test/hole/005.png")
    with served(run_dir) as client:
        number = numbers(client)["test/hole/005.png"]
        answer = client.get(f"/api/items/{number}/picture")
        picture = Image.open(io.BytesIO(answer.content))
        assert (answer.headers["content-type"], picture.size, picture.mode) == ("image/jpeg", (1600, 1067), "RGB")
        again = client.get(f"/api/items/{number}/picture", headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304


def test_a_file_that_is_no_image_is_one_clear_line(run_dir: Path, product: Path) -> None:
    (product / "test/hole/005.png").write_bytes(b"no image")
    with served(run_dir) as client:
        number = numbers(client)["test/hole/005.png"]
        for path in (f"/api/items/{number}", f"/api/items/{number}/picture"):
            answer = client.get(path)
            assert answer.status_code == 422
            assert "005.png cannot be read (it is not an image)" in answer.json()["error"]
        assert act(client, number, "drop", 0).status_code == 200


def test_a_map_above_its_threshold_is_offered_as_a_mask(predictions: Path) -> None:
    """As what a model of masks has found is."""
    heat = np.zeros((12, 12), np.float32)
    heat[:, 6:] = 3
    (predictions / "maps/crack").mkdir(parents=True)
    path = predictions / "maps/crack/001.png.tiff"
    Image.fromarray(heat).save(path)
    about = json.loads((predictions / "predicted.json").read_text())
    (predictions / "predicted.json").write_text(json.dumps({**about, "map_threshold": 1.5}))
    with served(predictions) as client:
        known = numbers(client)
        whole = client.get(f"/api/items/{known['crack/001.png']}").json()
        assert whole["found"] == [24 * 12, 24 * 12]  # column by column: the right half of 24 x 24
        assert client.get(f"/api/items/{known['crack/000.png']}").json()["found"] is not None  # found/ comes first
        assert client.get(f"/api/items/{known['good/001.png']}").json()["found"] is None
        said = {"mask": whole["found"]}
        assert act(client, known["crack/001.png"], "mark", 0, **said).status_code == 200
        Image.fromarray(heat.astype(np.uint8)).save(path)
        answer = client.get(f"/api/items/{known['crack/001.png']}")
        assert (answer.status_code, "is no map that task=predict wrote" in answer.json()["error"]) == (422, True)
    (predictions / "predicted.json").write_text(json.dumps({**about, "map_threshold": "1.5"}))
    with pytest.raises(LabError, match="map_threshold is no number"):
        read_subject(str(predictions))


# Decisions


def test_a_decision_is_kept_and_undone(client: Any, run_dir: Path) -> None:
    number = numbers(client)["test/hole/005.png"]
    assert act(client, number, "relabel", 0, label="crack").json()["item"]["label"] == "crack"
    assert act(client, number, "mark", 1, boxes=[[1, 2, 9, 8]]).json()["item"]["marked"]
    assert act(client, number, "confirm", 2).json()["item"] | {"said": 0} == {
        **{"id": number, "name": "test/hole/005.png", "version": 3, "verdict": "confirmed", "label": "crack"},
        **{"marked": True, "was": "hole", "known": True, "said": 0},
    }
    assert [undo(client).json()["item"]["verdict"] for _ in range(3)] == ["relabelled", "relabelled", "open"]
    assert undo(client).status_code == 404
    with Store(run_dir / "review" / "review.sqlite") and contextlib.closing(
        sqlite3.connect(run_dir / "review/review.sqlite")
    ) as db:
        assert [kind for (kind,) in db.execute("SELECT kind FROM actions")] == [
            "relabel",
            "mark",
            "confirm",
            *["undo"] * 3,
        ]
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute("DELETE FROM actions")


def test_the_same_request_is_done_once(client: Any) -> None:
    number = numbers(client)["test/hole/005.png"]
    said = {"action": "confirm", "version": 0, "person": ME, "request": "request-the-same"}
    answers = [client.post(f"/api/items/{number}", json=said, headers=WRITES) for _ in range(2)]
    assert [(a.status_code, a.json()["item"]["version"]) for a in answers] == [(200, 1)] * 2


def test_two_people_at_once_lose_no_work(client: Any, run_dir: Path) -> None:
    number = numbers(client)["test/hole/005.png"]
    assert act(client, number, "relabel", 0, OTHER, label="crack").status_code == 200
    late = act(client, number, "drop", 0, since=0)
    assert late.status_code == 409
    assert late.json()["item"]["label"] == "crack"
    assert [item["version"] for item in late.json()["changed"]] == [1]
    log = Store(run_dir / "review" / "review.sqlite").log()
    assert [(entry["kind"], entry["person"], entry["accepted"]) for entry in log] == [
        ("relabel", OTHER, 1),
        ("drop", ME, 0),
    ]
    # What one did, another one has built on: it is not taken back.
    assert act(client, number, "confirm", 1).status_code == 200
    assert undo(client, OTHER).status_code == 409
    assert undo(client).json()["item"]["verdict"] == "relabelled"
    assert undo(client, OTHER).json()["item"]["verdict"] == "open"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"action": "destroy"}, "none of confirm"),
        ({"version": "0"}, "version is no number"),
        ({"action": "relabel"}, "label is no text"),
        ({"action": "relabel", "label": "../../etc"}, "cannot be a folder's name"),
        ({"action": "relabel", "label": "Crack"}, "differs from 'crack'"),
        ({"action": "mark"}, "boxes, a mask or both"),
        ({"action": "mark", "boxes": [[0, 0, 0, 5]]}, "one pixel wide"),
        ({"action": "mark", "boxes": [[0, 0, 1e400, 5]]}, "four numbers"),
        ({"action": "mark", "mask": [24 * 24 - 1]}, "covers 575 pixels"),
        ({"action": "mark", "mask": [-1, 24 * 24 + 1]}, "no list of run lengths"),
        ({"person": "x"}, "random names"),
    ],
)
def test_bad_actions_change_nothing(client: Any, more: dict[str, Any], why: str) -> None:
    number = numbers(client)["test/hole/005.png"]
    said = {"action": "confirm", "version": 0, "person": ME, "request": "request-bad", **more}
    body = json.dumps(said).replace("Infinity", "1e400")
    answer = client.post(f"/api/items/{number}", content=body, headers=WRITES)
    assert answer.status_code == 422
    assert why in answer.json()["error"]
    assert client.get(f"/api/items/{number}").json()["version"] == 0


def test_names_of_classes_are_folders_on_every_system() -> None:
    assert class_name("  new   scratch ", ["good"]) == "new scratch"
    for name in (
        "",
        "a/b",
        "a\\b",
        "..",
        ".hidden",
        "end.",
        "con",
        "COM1.x",
        "ground_truth",
        "a\nb\x00",
        "x" * 61,
        "GOOD",
    ):
        with pytest.raises(LabError):
            class_name(name, ["good"])


# The disk


def test_a_full_disk_is_said_and_loses_nothing(run_dir: Path) -> None:
    store = Store(run_dir / "review" / "review.sqlite")
    number = store.add({"a.png": "good"})["a.png"]
    store.act(number, 0, "confirm", {"verdict": "confirmed"}, ME, "request-1")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")

    def draw() -> None:
        for turn in range(100):
            store.act(number, 1 + turn, "mark", {"mask": {"size": [1, 1], "counts": "x" * 5000}}, ME, f"turn-{turn}")

    with pytest.raises(DiskFullError, match="make room; what was answered before is kept"):
        draw()
    kept = store.item(number)
    assert store.log()[-1]["version"] == kept.version
    store._db.execute("PRAGMA max_page_count=100000")
    assert store.act(number, kept.version, "drop", {"verdict": "dropped"}, ME, "request-2").accepted


def test_a_full_disk_is_507(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    number = numbers(client)["test/hole/005.png"]
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_write", full)
        answer = act(client, number, "confirm", 0)
    assert (answer.status_code, "is full" in answer.json()["error"]) == (507, True)
    assert act(client, number, "confirm", 0).status_code == 200


def test_a_damaged_review_is_one_line(run_dir: Path) -> None:
    (run_dir / "review").mkdir()
    (run_dir / "review" / "review.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(LabError, match=r"review\.sqlite is damaged"):
        Store(run_dir / "review" / "review.sqlite")


def start(directory: Path, port: str = "0") -> tuple[subprocess.Popen[str], str]:
    """Start the command as a process of its own, and return its address."""
    words = [sys.executable, "-m", "mvtec_lab", "task=review", f"dir={directory}", f"review.port={port}"]
    words.append(f"hydra.run.dir={directory.parent / 'log'}")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = []
    for line in process.stdout:  # ends when the process does
        said.append(line)
        if found := re.search(r"open (http://\S+)", line):
            return process, found[1]
    raise AssertionError("".join(said))


def post(address: str, path: str, said: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(address + path, json.dumps(said).encode(), WRITES)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_what_was_answered_survives_a_kill_and_the_page_goes_on(run_dir: Path) -> None:
    process, address = start(run_dir)
    with urllib.request.urlopen(f"{address}api/items") as answer:
        number = json.load(answer)["items"][0]["id"]
    said = {"action": "relabel", "label": "new kind", "version": 0, "person": ME, "request": "request-killed"}
    post(address, f"api/items/{number}", said)
    process.kill()
    process.communicate()
    process, address = start(run_dir)
    # The page did not get its answer and asks again, then goes on where it was: numbers and versions are the same.
    assert post(address, f"api/items/{number}", said)["item"]["label"] == "new kind"
    item = post(address, f"api/items/{number}", {**said, "action": "confirm", "version": 1, "request": "request-next"})
    assert item["item"]["version"] == 2
    process.send_signal(signal.SIGINT)
    said_last = process.communicate()[0]
    assert process.returncode == 0, said_last
    assert "1 confirmed" in said_last


# Who may ask


def test_other_names_and_other_sites_are_refused(run_dir: Path) -> None:
    with served(run_dir, hosts=["127.0.0.1", "localhost"]) as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
        number = numbers(client)["test/hole/005.png"]
        said = {"action": "drop", "version": 0, "person": ME, "request": "request-form"}
        for headers in ({}, {**WRITES, "origin": "http://evil.example"}):
            assert client.post(f"/api/items/{number}", json=said, headers=headers).status_code == 403
        same = {**WRITES, "origin": "http://127.0.0.1:8001"}
        assert client.post(f"/api/items/{number}", json=said, headers=same).status_code == 200


def test_a_token_is_asked_for_and_kept_as_a_cookie(run_dir: Path) -> None:
    with served(run_dir, token="secret-of-the-review") as client:
        for path in ("/", "/review.js", "/api/items", "/?token=wrong", "/api/items?token=secret-of-the-review"):
            assert client.get(path).status_code == 401, path
        answer = client.get("/?token=secret-of-the-review", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert {"HttpOnly", "SameSite=strict"} <= set(re.split("; ", answer.headers["set-cookie"]))
        assert client.get("/api/items").status_code == 200


def test_answers_run_no_script_but_the_page_s_own(client: Any) -> None:
    for path in ("/", "/review.js", "/api/items", "/nothing"):
        answer = client.get(path)
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert not re.search(r"\son\w+=|<script>|<style|style=|https?://", page)
    assert "innerHTML" not in client.get("/review.js").text + client.get("/draw.js").text


@pytest.mark.parametrize(
    "path", ["/api/items/../../run", "/api/items/99999/picture", "/%2e%2e/config.yaml", "/review.sqlite"]
)
def test_no_address_leads_to_a_file(client: Any, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "error" in answer.json()


def test_too_large_a_body_is_refused(client: Any) -> None:
    number = numbers(client)["test/hole/005.png"]
    answer = client.post(f"/api/items/{number}", content=b"[" + b"0," * (5 << 20), headers=WRITES)
    assert answer.status_code == 413
    assert client.post(f"/api/items/{number}", content=b"{", headers=WRITES).status_code == 400


# A new version


def test_a_version_of_a_run_trains_as_it_is(run_dir: Path, product: Path, lab: Callable[..., int]) -> None:
    before = {path: path.read_bytes() for path in product.rglob("*") if path.is_file()}
    with served(run_dir) as client:
        known = numbers(client)
        assert act(client, known["test/hole/005.png"], "relabel", 0, label="crack").status_code == 200
        assert act(client, known["test/good/004.png"], "drop", 0).status_code == 200
        assert act(client, known["test/crack/005.png"], "mark", 0, mask=[48, 48, 480]).status_code == 200
        facts = export(client)
    version = Path(facts["folder"])
    assert version.name == "version-1"
    assert before == {path: path.read_bytes() for path in product.rglob("*") if path.is_file()}
    assert not list((run_dir / "review").glob(".version*"))
    rows = {row["was"]: row for row in read_csv(version / "CHANGES.csv")}
    assert {was: row["change"] for was, row in rows.items()} == {
        **{"test/hole/005.png": "relabelled", "test/good/004.png": "dropped", "test/crack/005.png": "marked"}
    }
    moved = rows["test/hole/005.png"]
    assert moved["path"] == "test/crack/005__2.png"  # 005 is taken
    assert (version / moved["path"]).read_bytes() == before[product / "test/hole/005.png"]
    assert (version / "ground_truth/crack/005__2_mask.png").is_file()
    assert np.asarray(Image.open(version / "ground_truth/crack/005_mask.png")).sum() == 48 * 255
    scan = read_folder(version)
    assert not scan.mask_problems
    assert len(scan.samples) == len(read_folder(product).samples) - 1
    splits = {row["path"]: row["split"] for row in read_csv(version / "split.csv")}
    old = {row["path"]: row["split"] for row in read_csv(run_dir / "samples.csv")}
    assert splits[moved["path"]] == old["test/hole/005.png"]  # what is tested stays tested
    words = [word for word in facts["command"].split()[3:] if not word.startswith("data")]
    assert f"split.file={version / 'split.csv'}" in words
    assert lab(*words, f"data.root={version}", "hydra.run.dir=retrained") == 0
    counts = json.loads((run_dir.parent / "retrained/result.json").read_text())["counts"]
    assert sum(counts["test"].values()) == list(splits.values()).count("test")
    assert {s.split for s in read_folder(version, "coco").samples} == {"train", "val", "test"}


def test_the_command_of_a_version_has_what_was_typed_for_the_run(run_dir: Path) -> None:
    """Else the retrained model would have other settings, and differ by these as well."""
    typed = [
        "task=train",
        "attempt=head",
        "data=mvtec",
        "data.root=/x",
        "data.image_size=24",
        "split.test=0.5",
        "seed=3",
    ]
    typed += ["data.per_class=2", "optimizer.lr=0.01", "++augment.transforms.GaussNoise.p=0.5", "cv.folds=5"]
    typed += ["hydra.launcher._target_=os.system", "--multirun", "a b; rm x", 7]
    (run_dir / "operating.json").write_text(json.dumps({"reject": 0.5, "typed": typed}))
    with served(run_dir) as client:
        command = export(client)["command"]
    settings = "data.image_size=24 seed=3 optimizer.lr=0.01 ++augment.transforms.GaussNoise.p=0.5"
    assert command.endswith(f"version-1/split.csv {settings}")


def test_new_images_train_and_copies_are_not_added_twice(predictions: Path, product: Path) -> None:
    with served(predictions) as client:
        known = numbers(client)
        assert act(client, known["crack/000.png"], "confirm", 0).status_code == 200
        assert act(client, known["crack/001.png"], "relabel", 0, label="dirt").status_code == 200
        assert act(client, known["good/000.png"], "confirm", 0).status_code == 200
        # byte by byte an image of the data set, which may be one that is tested
        assert act(client, known["copy/again.png"], "relabel", 0, label="crack").status_code == 200
        assert act(client, known["crack/001.png"], "mark", 1, boxes=[[2, 2, 12, 9]]).status_code == 200
        facts = export(client)
        assert export(client)["folder"].endswith("version-2")
    version = Path(facts["folder"])
    rows = {row["was"]: row for row in read_csv(version / "CHANGES.csv")}
    assert {was: (row["change"], row["path"], row["split"]) for was, row in rows.items() if was.startswith("new")} == {
        "new/crack/000.png": ("added", "test/crack/000__2.png", "train"),
        "new/crack/001.png": ("added", "test/dirt/001.png", "train"),
        "new/good/000.png": ("added", "train/good/000__2.png", "train"),
    }
    assert rows["test/hole/005.png"]["change"] == "relabelled"
    assert facts["images"] == len(read_folder(product).samples) + 3
    assert facts["classes"]["dirt"] == 1
    content = json.loads((version / "annotations/instances_train.json").read_text())
    (box,) = [a["bbox"] for a in content["annotations"] if "segmentation" not in a]
    assert box == [2, 2, 10, 7]
    assert any("without a mask or a box" in line for line in facts["warnings"])  # crack/000 was confirmed alone


def test_a_confirmed_defect_keeps_the_type_that_is_known(predictions: Path) -> None:
    rows = read_csv(predictions / "predictions.csv")
    named = [{**row, "prediction": "defect" if row["prediction"] == "crack" else "good"} for row in rows]
    write_csv(predictions / "predictions.csv", named, list(rows[0]))
    with served(predictions) as client:
        act(client, numbers(client)["copy/again.png"], "confirm", 0)
        facts = export(client)
    (row,) = read_csv(Path(facts["folder"]) / "CHANGES.csv")
    assert (row["change"], row["label"], row["was"]) == ("confirmed", "hole", "test/hole/005.png")


def test_a_class_without_training_images_takes_no_part(run_dir: Path) -> None:
    with served(run_dir) as client:
        act(client, numbers(client)["test/hole/005.png"], "relabel", 0, label="dirt")
        facts = export(client)
    assert any("class 'dirt' has no training image" in line for line in facts["warnings"])
    splits = {row["path"]: row["split"] for row in read_csv(Path(facts["folder"]) / "split.csv")}
    assert splits["test/dirt/005.png"] == ""


def test_a_version_that_does_not_fit_leaves_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvtec_lab.review import export as module

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with served(run_dir) as client:
        monkeypatch.setattr(module, "_write_coco", full)
        answer = client.post("/api/versions", json={}, headers=WRITES)
    assert answer.status_code == 507
    assert sorted(path.name for path in (run_dir / "review").iterdir() if path.is_dir()) == []


# The command's mistakes


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "task=review needs dir=RUN_OR_PREDICTIONS"),
        (["dir=nowhere"], "dir=nowhere does not exist"),
        (["dir=products"], "dir=products has no predictions.csv"),
        (["dirs=[run]"], "dirs=['run'] does nothing for task=review"),
        (["dir=run", "review.order=best"], "review.order"),
        (["dir=run", "review.port=70000"], "review.port=70000 is out of range"),
        (["dir=run", "review.host=no.such.host.invalid"], "cannot be used"),
        (["dir=run", "data.root=products"], "does nothing for task=review"),
    ],
)
def test_mistakes_are_one_line(lab: Callable[..., int], run_dir: Path, capsys: Any, words: list[str], why: str) -> None:
    assert lab("task=review", *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert why in line


def test_the_extra_is_named_where_it_is_missing(
    lab: Callable[..., int], run_dir: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("mvtec_lab.engine.listening.find_spec", lambda name: None)
    assert lab("task=review", "dir=run") == 2
    assert 'pip install "mvtec_lab[serve]"' in capsys.readouterr().err


def test_train_reads_no_key_of_a_review(lab: Callable[..., int], capsys: Any) -> None:
    assert lab("review.port=9") == 2
    assert "review.port=9 does nothing for task=train" in capsys.readouterr().err


def test_foreign_predictions_lead_to_no_other_file(predictions: Path, tmp_path: Path) -> None:
    rows = read_csv(predictions / "predictions.csv")
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(secret)
    odd = [{**rows[0], "path": path} for path in ("new/../secret.png", "/etc/passwd", "new/gone.png")]
    write_csv(predictions / "predictions.csv", [*rows, *odd], list(rows[0]))
    subject = read_subject(str(predictions))
    assert len(subject.items) == len(rows)
    assert len(subject.notes) == 2
    (predictions / "found/good").mkdir()
    (predictions / "found/good/000.png.png").symlink_to(secret)
    assert all(item.found is None for item in read_subject(str(predictions)).items if "good" in item.key)


def test_nothing_to_undo(tmp_path: Path) -> None:
    with pytest.raises(NothingToUndoError):
        Store(tmp_path / "review.sqlite").undo(ME, "request-none")
