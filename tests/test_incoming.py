"""New images for task=predict, wherever they come from, and what is shown of them."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import SIZE
from PIL import Image

import mvtec_lab as lab_of
from mvtec_lab.data import incoming
from mvtec_lab.data.incoming import Archive, Video, Watched, find
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.operating import doubt, margin
from mvtec_lab.reporting.expected import expected, judged_by
from mvtec_lab.reporting.predicted import MOST, Doubtful, Shown
from mvtec_lab.results import append_csv, read_csv
from mvtec_lab.review.items import most_doubtful, read_subject

LAYERS = "model.options.layers=[features.relu1,features.relu2]"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("0.png\n\n2.png\n")
    return folder


def names(source: incoming.Source, folder: Path) -> list[str]:
    return [source.name(path) for group in source.groups(folder) for path in group]


def test_a_folder_a_glob_and_lists_give_images(images: Path, tmp_path: Path) -> None:
    assert names(find(str(images)), tmp_path) == ["0.png", "1.png", "2.png"]
    globbed = find(f"{images}/*")
    assert names(globbed, tmp_path) == ["0.png", "1.png", "2.png"]
    assert globbed.left_out == {"file(s) that are not images": [str(images / "notes.txt")]}
    assert names(find(f"{tmp_path}/**/[12].png"), tmp_path) == ["new/1.png", "new/2.png"]
    assert names(find(str(images / "notes.txt")), tmp_path) == ["0.png", "2.png"]
    (images / "list.csv").write_text(f"id,path\n7,1.png\n8,{images / '0.png'}\n")
    assert names(find(str(images / "list.csv")), tmp_path) == ["1.png", "0.png"]


def test_listed_images_that_lie_elsewhere_have_names_of_their_own(images: Path, tmp_path: Path) -> None:
    """They were written out of the task's folder, or over each other: every class of MVTec has a 000.png."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(images / "0.png", tmp_path / folder)
    os.mkfifo(images / "pipe.png")
    (images / "list.txt").write_text("../one/0.png\n../two/0.png\n../new/0.png\npipe.png\n")
    source = find(str(images / "list.txt"))
    found = names(source, tmp_path)
    outside = f"elsewhere{tmp_path.as_posix()}"
    assert found == [f"{outside}/one/0.png", f"{outside}/two/0.png", "0.png"]
    assert source.broken == [f"{images / 'pipe.png'} is a folder, a pipe or another special file: list images"]


def test_an_archive_is_unpacked_below_the_task_s_folder(images: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "day.zip", "w") as archive:
        archive.write(images / "1.png", "a/1.png")
        archive.write(images / "0.png", "a/10.png")
        archive.writestr("__MACOSX/a/._1.png", b"")
        archive.writestr("read.me", b"hello")
    source = find(str(tmp_path / "day.zip"))
    assert isinstance(source, Archive)
    assert names(source, tmp_path / "out") == ["a/1.png", "a/10.png"]
    assert (tmp_path / "out/images/a/1.png").read_bytes() == (images / "1.png").read_bytes()
    assert source.left_out == {"file(s) that are not images": ["read.me"]}


@pytest.mark.parametrize("name", ["../out.png", "/out.png", "a/../../out.png", "C:/out.png"])
def test_an_archive_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "day.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(LabError, match="leads out of it"):
        find(str(tmp_path / "day.zip"))


def test_a_broken_member_is_named(images: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "day.zip", "w") as archive:
        archive.write(images / "0.png", "0.png")
        archive.write(images / "1.png", "1.png")
    content = bytearray((tmp_path / "day.zip").read_bytes())
    content[60] ^= 0xFF  # within the first image
    (tmp_path / "day.zip").write_bytes(content)
    source = find(str(tmp_path / "day.zip"))
    assert names(source, tmp_path / "out") == ["1.png"]
    assert "0.png of" in source.broken[0]
    assert not (tmp_path / "out/images/0.png").exists()


def test_members_that_can_be_no_files_are_named_and_the_others_unpacked(images: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "day.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the name that is there twice
        for name in ("a.png", "a.png", "a.png/b.png", f"{300 * 'c'}.png", "d.png"):
            archive.write(images / "0.png", name)
    source = find(str(tmp_path / "day.zip"))
    assert names(source, tmp_path / "out") == ["a.png", "d.png"]
    assert len(source.broken) == 3
    assert all(line.endswith("pack it again") for line in source.broken)


def video(path: Path, frames: int, fps: int = 10) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (32, 32))
    for number in range(frames):
        writer.write(np.full((32, 32, 3), 20 * number, np.uint8))
    writer.release()
    return path


def test_a_video_gives_its_frames_as_files(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.avi", 6)
    source = find(str(path))
    assert isinstance(source, Video)
    assert names(source, tmp_path / "out") == [f"clip_{number:06}.png" for number in range(6)]
    assert cv2.imread(str(tmp_path / "out/images/clip_000003.png")).mean() == pytest.approx(60, abs=6)
    assert names(find(str(path), fps=5), tmp_path / "some") == [f"clip_{number:06}.png" for number in (0, 2, 4)]


def test_a_camera_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = video(tmp_path / "clip.avi", 2), cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda device: real(str(path)) if device == 0 else real("none"))
    source = find("0")
    assert source.live
    assert names(source, tmp_path / "out") == ["camera0_000000.png", "camera0_000001.png"]
    with pytest.raises(LabError, match="camera 7 cannot be opened"):
        next(find("7").groups(tmp_path / "out"))


def test_a_watched_folder_gives_complete_files_once(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(10))

    def wait() -> None:
        match next(looks):
            case 1:
                (images / "3.png").write_bytes(b"half")
            case 2:
                shutil.copy(images / "0.png", images / "3.png")
            case 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(incoming, "wait", wait)
    source = find(str(images), watch=True)
    groups: list[list[str]] = []
    assert isinstance(source, Watched)
    with suppress(KeyboardInterrupt):
        groups += ([path.name for path in group] for group in source.groups(tmp_path))
    assert groups == [["0.png", "1.png", "2.png"], ["3.png"]]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (None, "needs source=FILE_OR_FOLDER"),
        ("nowhere", "does not exist: give an image or a folder"),
        ("*.jpg", "matches no image"),
        ("empty", "holds no image"),
        ("none.txt", "names no image"),
        ("bare.csv", "has no column path"),
        ("no.zip", "is no zip archive, or damaged"),
    ],
)
def test_what_gives_no_image_is_one_line(
    typed: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("none.txt", "bare.csv", "no.zip"):
        (tmp_path / name).write_text("\n")
    with pytest.raises(LabError, match=said):
        find(typed)


def test_rows_are_appended_whole(tmp_path: Path) -> None:
    for number in range(2):
        append_csv(tmp_path / "rows.csv", {"path": f"{number}.png", "decision": "OK", "note": "=1"})
    assert read_csv(tmp_path / "rows.csv") == [
        {"path": f"{number}.png", "decision": "OK", "note": "=1"} for number in range(2)
    ]


def test_a_classifiers_doubt_is_in_log_odds() -> None:
    """Else every good image stood before the defects, whose probabilities are farther from a threshold near 0."""

    def of(label: str, good: float, crack: float, hole: float, decision: str = "OK") -> tuple[int, float]:
        row = {"prob_good": good, "prob_crack": crack, "prob_hole": hole, "decision": decision}
        return doubt({**row, "threshold": 0.3, "accept": 0.3}, label)

    asked = of("crack", 0.0, 1.0, 0.0, "UNKNOWN"), of("good", 0.75, 0.25, 0.0, "REVIEW")
    sure, near, torn = (
        of("good", 0.99, 0.01, 0.0),
        of("good", 0.72, 0.28, 0.0),
        of("crack", 0.001, 0.5, 0.499, "REJECT"),
    )
    inside = of("crack", 0.2, 0.8, 0.0, "REJECT")
    assert asked[0] < asked[1] < torn < near < inside < sure < of("crack", 0.0, 1.0, 0.0, "REJECT")
    halfway = of("crack", 0.5, 0.5, 0.0, "REJECT")
    assert near < halfway < inside, "the threshold says what is good, not the likeliest class"
    assert of("good", 0.0, 1.0, 0.0) < of("good", 0.6, 0.4, 0.0) < torn, "labels that the model contradicts come first"


def test_without_a_threshold_all_classes_are_rivals() -> None:
    row = {"prob_good": 0.5, "prob_crack": 0.3, "prob_hole": 0.2}
    assert margin(row, "good") == pytest.approx(math.log(0.5 / 0.3))
    assert margin(row, "hole") == pytest.approx(math.log(0.2 / 0.5))
    assert margin({"score": "0.4", "threshold": "0.5", "accept": ""}, "good") == pytest.approx(0.1)
    assert margin({"prediction": "good"}, "good") == 0


def test_the_most_doubtful_are_kept() -> None:
    kept = Doubtful()
    picture = np.zeros((640, 320, 3), np.uint8)
    for number in np.random.default_rng(0).permutation(200):
        kept.add(Shown((2 - number % 2, float(number)), "OK", "", f"{number}.png", {"": picture}))
    shown = kept.most_doubtful()
    assert [int(image.doubt[1]) for image in shown] == list(range(1, 2 * MOST, 2)), "what asks for a person comes first"
    assert shown[0].tiles[""].shape == (320, 160, 3)


def test_what_learnt_nothing_is_shown_without_confidence(product: Path, tmp_path: Path) -> None:
    data = lab_of.MVTecDataModule(product, image_size=SIZE)
    data.setup()
    shares = {split: np.tile([0.2, 0.6, 0.2], (len(data.of_split(split)), 1)) for split in ("val", "test")}
    lab_of.write_run(tmp_path / "run", "constant", data, shares)
    assert expected(tmp_path / "run/best.ckpt").light == "red"
    assert expected(tmp_path / "nowhere/best.ckpt").light == "amber"


def test_the_model_that_judges_is_named(product: Path, tmp_path: Path) -> None:
    data = lab_of.MVTecDataModule(product, image_size=SIZE)
    data.setup()
    shares = {split: np.tile([0.2, 0.6, 0.2], (len(data.of_split(split)), 1)) for split in ("val", "test")}
    lab_of.write_run(tmp_path / "run", "constant", data, shares)
    own = f"by {tmp_path / 'run'}: constant, "
    assert judged_by(tmp_path / "run/best.ckpt", "classifier", None, None) == f"{own}no threshold"
    assert judged_by(tmp_path / "run/best.ckpt", "classifier", 0.31, 0.1) == f"{own}thresholds 0.1 and 0.31"
    alone = tmp_path / "elsewhere/model.ckpt"  # a file without its run
    assert judged_by(alone, "patchcore", 0.5, 0.5) == f"by {alone}: method patchcore, threshold 0.5"
    alone.parent.mkdir()  # a folder of task=threshold, copied to a line without the run that it came from
    (alone.parent / "operating.json").write_text(json.dumps({"ckpt": "gone/best.ckpt", "attempt": "lab/where"}))
    assert judged_by(alone, "descriptors", 0.5, 0.5) == f"by {alone}: lab/where, threshold 0.5"


@pytest.fixture
def run(lab, tmp_path: Path) -> Path:
    assert lab("attempt=patchcore", LAYERS, "hydra.run.dir=run") == 0
    return tmp_path / "run"


def test_predictions_have_a_page_with_the_figure_to_expect(
    run: Path, lab, product: Path, tmp_path: Path, capsys
) -> None:
    assert lab("task=predict", f"ckpt={run}", f"source={product}/test/*/00[01].png", "hydra.run.dir=out") == 0
    out = capsys.readouterr().out
    page = (tmp_path / "out/report.html").read_text()
    assert "ms an image (median; 95% within" in out
    assert "/out: predictions.csv, report.html\n" in out
    limit = float(read_csv(tmp_path / "out/predictions.csv")[0]["threshold"])
    by = f"y {run}: patchcore, threshold {limit:.4g}"
    assert f"\nb{by}\n" in out
    assert f">B{by}.<" in page
    for said in ("image AUROC 1.00, between", "of the defects pass as good"):
        assert said in out
        assert said in page
    assert page.count("<figure class=") == 6
    assert page.count("<b>REJECT</b>") == sum(
        row["decision"] == "REJECT" for row in read_csv(tmp_path / "out/predictions.csv")
    )
    assert "crack/001.png" in page
    assert "<script" not in page
    margins = [abs(float(r["score"]) - float(r["threshold"])) for r in read_csv(tmp_path / "out/predictions.csv")]
    paths = [row["path"] for row in read_csv(tmp_path / "out/predictions.csv")]
    order = [paths[place] for place in np.argsort(margins, kind="stable")]
    assert [page.index(f"<br>{path}") for path in order] == sorted(page.index(f"<br>{path}") for path in paths)
    items = read_subject(str(tmp_path / "out")).items
    assert [items[place].key for place in most_doubtful(items)] == order, "task=review begins with the same images"


def test_a_watched_folder_is_judged_row_by_row(
    run: Path, lab, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = tmp_path / "line"
    folder.mkdir()
    shutil.copy(product / "test/good/001.png", folder / "0.png")
    rows: list[int] = []
    looks = iter(range(10))

    def wait() -> None:
        rows.append(len(read_csv(tmp_path / "out/predictions.csv")))
        match next(looks):
            case 1:
                shutil.copy(product / "test/hole/000.png", folder / "1.png")
            case 2:
                (folder / "2.png").write_bytes(b"no image")
            case 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(incoming, "wait", wait)
    words = ("task=predict", f"ckpt={run}", f"source={folder}", "watch=true", "hydra.run.dir=out")
    assert lab(*words) == 1  # one image is broken
    assert rows == [0, 1, 1, 2, 2, 2]
    assert [row["decision"] for row in read_csv(tmp_path / "out/predictions.csv")] == ["OK", "REJECT"]
    assert "2.png cannot be read" in capsys.readouterr().err
    assert (tmp_path / "out/report.html").exists()


@pytest.fixture
def watched(run: Path, lab, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Watch the folder ``line``, in which an image lies, for as many looks as there are things that happen in them."""
    folder = tmp_path / "line"
    folder.mkdir()
    shutil.copy(product / "test/good/001.png", folder / "0.png")

    def watch(*words: str, then: Sequence[Callable[[], Any]], ckpt: Path = run) -> int:
        happens = iter([lambda: None, *then, lambda: None])  # a file is judged at the second look

        def wait() -> None:
            next(happens, stop)()

        monkeypatch.setattr(incoming, "wait", wait)
        return lab("task=predict", f"ckpt={ckpt}", f"source={folder}", "watch=true", "hydra.run.dir=out", *words)

    return watch


def stop() -> None:
    raise KeyboardInterrupt


class KilledError(BaseException):
    """End a process as SIGKILL does: nothing after it is written."""


def kill() -> None:
    raise KilledError


def test_a_watched_folder_goes_on_after_a_kill(watched, product: Path, tmp_path: Path, capsys) -> None:
    folder, table = tmp_path / "line", tmp_path / "out/predictions.csv"
    with pytest.raises(KilledError):
        watched(then=[lambda: shutil.copy(product / "test/hole/000.png", folder / "1.png"), lambda: None, kill])
    assert [Path(row["path"]).name for row in read_csv(table)] == ["0.png", "1.png"]
    assert not (tmp_path / "out/report.html").exists()
    whole = table.read_bytes()
    table.write_bytes(whole + b"line/2.png,OK,go")  # what a power cut may leave
    shutil.copy(product / "test/hole/001.png", folder / "2.png")
    shutil.copy(product / "test/hole/001.png", folder / "0.png")  # another part under an old name
    os.utime(folder / "0.png", ns=(0, 0))  # its own clock says nothing
    os.utime(table, ns=(0, (folder / "0.png").stat().st_ctime_ns + 10**9))  # as if other rows had come after that
    assert watched(then=[stop]) == 2  # as before: no directory is used twice unasked
    said = capsys.readouterr().err
    assert (
        "out holds other predictions: give another directory (hydra.run.dir=) or remove them; those of a watched"
        in said
    )
    assert watched("resume=true", then=[]) == 0
    rows = read_csv(table)
    assert table.read_bytes().startswith(whole)
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "0.png", "2.png"]
    assert [row["decision"] for row in rows] == ["OK", "REJECT", "REJECT", "REJECT"]
    assert "4 images: 1 OK, 3 REJECT" in capsys.readouterr().out
    assert watched("resume=true", then=[]) == 0  # and once more, without a new image
    assert len(read_csv(table)) == 4
    assert not (tmp_path / "out/running.json").exists()


def test_a_watched_folder_goes_on_by_the_same_model_alone(watched, run: Path, tmp_path: Path, capsys) -> None:
    assert watched("resume=true", then=[]) == 0  # nothing to go on with: it begins
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert watched("resume=true", then=[], ckpt=other) == 2
    assert "out was begun with" in capsys.readouterr().err
    table = tmp_path / "out/predictions.csv"
    table.write_bytes(table.read_bytes().replace(b"path,decision", b"path,verdict"))
    shutil.copy(tmp_path / "line/0.png", tmp_path / "line/1.png")
    assert watched("resume=true", then=[]) == 2
    assert "was begun by another model" in capsys.readouterr().err


def test_resuming_is_for_what_goes_on(lab, tmp_path: Path, capsys) -> None:
    assert lab("task=predict", "ckpt=none", f"source={tmp_path}", "resume=true") == 2
    assert "resume=true resumes a training, or task=predict watch=true" in capsys.readouterr().err


def test_a_refused_archive_leaves_nothing(run: Path, lab, tmp_path: Path, capsys) -> None:
    with zipfile.ZipFile(tmp_path / "day.zip", "w") as archive:
        archive.writestr("0.png", b"no image")
    assert lab("task=predict", f"ckpt={run}", "source=day.zip", "hydra.run.dir=out") == 2
    assert "has no image that can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
