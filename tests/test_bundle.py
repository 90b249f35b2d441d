"""task=export leaves a folder that judges images without the lab, as the lab does, or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SIZE, others_slow
from PIL import Image
from test_anomaly_tasks import SIDE, untrained

from mvtec_lab.data.frame import Frame
from mvtec_lab.data.images import read_image
from mvtec_lab.data.transforms import resize
from mvtec_lab.engine import bundle, infer
from mvtec_lab.evaluation.operating import score_of
from mvtec_lab.problems.classification.exported import decide
from mvtec_lab.results import read_csv
from mvtec_lab.tasks.export import enlarges_in_fixed_point

SIZES = [
    (300, 20),
    (20, 300),
    (20, 30),
    (48, 48),
    (72, 48),
    (96, 48),
    (96, 96),
    (48, 24),
    (49, 25),
    (127, 251),
    (1, 90),
    (100, 3),
    (64, 64),
    (128, 128),
]


@pytest.fixture
def without_ipp() -> Iterator[None]:
    """OpenCV as it computes on other processors than Intel's."""
    if not hasattr(cv2, "ipp"):
        yield
        return
    cv2.ipp.setUseIPP(False)
    yield
    cv2.ipp.setUseIPP(True)


def test_without_ipp_an_export_says_how_images_were_enlarged(without_ipp: None) -> None:
    assert enlarges_in_fixed_point()
    test_the_script_prepares_images_as_the_lab_does("squeeze")


@pytest.mark.parametrize("fit", ["squeeze", "letterbox"])
def test_the_script_prepares_images_as_the_lab_does(fit: str) -> None:
    """To the bit where nothing grows; else within a level, in fewer than one of 10,000 values of noise.

    The mean of a noisy image's 64 rows for 48 lies halfway between two levels in one of sixteen values.
    """
    rng, values, differ, fixed = np.random.default_rng(0), 0, 0, enlarges_in_fixed_point()
    for height, width in SIZES:
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        for size in (24, 48, 64):
            given, wanted = infer.square(image, size, fit, fixed), resize(image, Frame(size, fit))
            apart = np.abs(given.astype(int) - wanted)
            assert apart.max() <= 1, (height, width, size)
            *_, h, w = infer.place(height, width, size, fit)
            assert apart.max() == 0 or h > height or w > width, (height, width, size)
            values, differ = values + apart.size, differ + int((apart > 0).sum())
            assert infer.place(height, width, size, fit) == Frame(size, fit).place((height, width))
    assert differ < values * 1e-4


def test_the_script_reads_files_as_the_lab_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours, deep = rng.integers(0, 256, (9, 7, 3), np.uint8), rng.integers(0, 5000, (9, 7), np.uint16)
    paths = [tmp_path / name for name in ("a.png", "a.jpg", "grey.png", "alpha.png", "palette.png", "turned.jpg")]
    made = [Image.fromarray(colours)] * 2
    made += [made[0].convert(mode) for mode in ("L", "RGBA", "P")]
    for path, image in zip(paths, made, strict=False):
        image.save(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    made[0].save(paths[5], exif=exif)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for path in (*paths, tmp_path / "deep.png"):
        np.testing.assert_array_equal(infer.read(path, 4095), read_image(path, 4095), err_msg=path.name)
    cv2.imwrite(str(tmp_path / "deep_colour.png"), np.repeat(deep[..., None], 3, axis=2))
    with pytest.raises(ValueError, match="save it with 8 bits"):
        infer.read(tmp_path / "deep_colour.png", 4095)


def alone(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a bundle's script as somebody without the lab would, from elsewhere."""
    command = [sys.executable, "-I", "-c", bundle._ALONE, str(folder / "infer.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)


@pytest.fixture
def new(product: Path, tmp_path: Path) -> Path:
    """A folder of images in two folders, all twice as wide as the product's."""
    for kind in ("good", "hole"):
        (tmp_path / "new" / kind).mkdir(parents=True)
        for place in range(3):
            picture = Image.open(product / f"test/{kind}/{place:03}.png")
            picture.resize((70, 35)).save(tmp_path / f"new/{kind}/{place}.png")
    return tmp_path / "new"


# What is learnt and how images get into the square, and settings that make it quick.
LAYERS = "model.options.layers=[features.relu1,features.relu2]"
BOXES = "attempt=detect/fcos model.unfreeze=0 model.options.finest=4 model.options.channels=32 data.image_size=64"
CASES = {
    "classifier": "attempt=base",
    "letterboxed": "attempt=base data.fit=letterbox",
    "patchcore": f"attempt=patchcore {LAYERS}",
    "tiles": f"attempt=patchcore {LAYERS} data.tile=20",
    "masks": f"attempt=segment/fpn {LAYERS} model.options.channels=8 data.fit=letterbox",
    "boxes": BOXES,
}


@pytest.mark.parametrize("case", others_slow(CASES, "classifier"))
def test_the_script_says_what_predict_says(case: str, lab, new: Path, tmp_path: Path) -> None:
    assert lab(*CASES[case].split(), "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run", "hydra.run.dir=out") == 0
    assert lab("task=predict", "ckpt=run", f"source={new}", "hydra.run.dir=predicted") == 0
    rows = {row["path"]: row for row in read_csv(tmp_path / "predicted/predictions.csv")}
    draws = case not in ("classifier", "letterboxed")
    done = alone(tmp_path / "out", str(new), *(["--map", str(tmp_path / "maps")] if draws else []))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[-1] for line in lines] == list(rows)
    for decision, name, score, confidence, path in lines:
        row = rows[path]
        assert (decision, name) == (row["decision"], row.get("found_type") or row["prediction"])
        assert float(score) == pytest.approx(float(row["score"]), rel=1e-3, abs=1e-5)
        assert confidence == "-" or float(confidence) == pytest.approx(float(row["confidence"]), rel=1e-3)
    if draws:
        drawn = {path.relative_to(tmp_path / "maps").as_posix() for path in (tmp_path / "maps").rglob("*.png")}
        assert drawn == {f"{path.relative_to(new).as_posix()}.png" for path in new.rglob("*.png")}
        assert Image.open(tmp_path / "maps/hole/0.png.png").size == (70, 35)
    else:
        assert "does not say where a defect is" in alone(tmp_path / "out", str(new), "--map", "x").stderr
    check = json.loads((tmp_path / "out/export.json").read_text())["infer"]
    assert check["of"] == "the run's test images"
    assert 0 <= check["difference"] <= check["allowed"]
    text = (tmp_path / "out/infer.py").read_text()
    assert ("def look_at_tiles" in text) == (case == "tiles")
    assert len(text.splitlines()) < 200


@pytest.mark.slow
def test_two_thresholds_review_what_lies_between(lab, new: Path, product: Path, tmp_path: Path) -> None:
    version = shutil.copytree(product, tmp_path / "review/version-1")  # as a review writes it
    (version / "version.json").write_text(json.dumps({"data": str(product)}))
    assert lab("attempt=base", f"data.root={version}", "hydra.run.dir=run") == 0
    assert lab("task=threshold", "ckpt=run", "false_rejects=0.3", "reviews=0.4", "hydra.run.dir=strict") == 0
    assert lab("task=export", "ckpt=strict", "hydra.run.dir=out") == 0
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert about["accept"] < about["threshold"]
    for apart, decision in ((0.01, "REJECT"), (-1e-6, "REVIEW"), (-about["threshold"], "OK")):
        score = about["threshold"] + apart
        probabilities = np.array([[1 - score, score, 0]])
        assert decide({"probabilities": probabilities}, about)[0] == decision
    done = alone(tmp_path / "out", str(new))
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} <= {"OK", "REVIEW", "REJECT", "UNKNOWN"}
    card = (tmp_path / "out/model_card.md").read_text()
    assert "`REVIEW` between" in card
    assert "false_rejects=0.3 reviews=0.4" in card
    assert "`UNKNOWN`: an image farther than" in card
    assert card.startswith("# Model card: base on version-1 for `widget`\n")
    assert "by attempt `base on version-1`: method `classifier` over `" in card
    assert "Attempt `base on version-1`" in card
    assert "before a threshold decided: the operating point has its own rates:" in card
    for metric in ("accuracy", "balanced accuracy", "escapes", "false rejects"):
        assert re.search(rf"^\| {metric} \| [\d.]+ \| [\d.]+ to [\d.]+ \|$", card, re.MULTILINE), metric
    checked = np.repeat(np.indices((SIZE, SIZE)).sum(0)[..., None] % 2 * 255, 3, axis=2).astype(np.uint8)
    Image.fromarray(checked).save(tmp_path / "checked.png")
    assert alone(tmp_path / "out", str(tmp_path / "checked.png")).stdout.startswith("UNKNOWN\t")
    assert infer.unlike({"distance": np.array([9.0])}, {"unknown": {"above": 1, "first": False}}, "OK")
    assert not infer.unlike({"distance": np.array([9.0])}, {"unknown": {"above": 1, "first": False}}, "REJECT")


def test_an_image_at_a_threshold_is_decided_as_the_lab_decides() -> None:
    """Thresholds rest on the digits of predictions.csv, and the image that one was chosen by may lie on it."""
    rng, classes = np.random.default_rng(0), ["good", "crack", "hole"]
    for values in rng.dirichlet([1, 1, 1], 200).astype(np.float32):
        score = score_of({f"prob_{name}": f"{value:.6g}" for name, value in zip(classes, values, strict=True)})
        assert score is not None
        for threshold, wanted in ((score, "OK"), (float(np.nextafter(score, 0)), "REJECT")):
            about = {"classes": classes, "threshold": threshold}
            assert decide({"probabilities": values[None]}, about)[0] == wanted


@pytest.mark.slow
def test_a_model_in_integers_says_what_it_costs(lab, tmp_path: Path, capsys) -> None:
    assert lab(*CASES["tiles"].split(), "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run", "format=int8", "hydra.run.dir=out") == 0
    found = json.loads((tmp_path / "out/export.json").read_text())["int8"]
    assert found["images"] == sum(found["decisions"]["float32"].values()) == sum(found["decisions"]["int8"].values())
    assert 0 < found["difference"] < 1  # integers round, and still say something
    assert re.search(r"model_int8.onnx: .* ms a tile instead of", capsys.readouterr().out)
    card = (tmp_path / "out/model_card.md").read_text()
    assert f"**{len(found['changed'])} images** are decided" in card
    assert "in milliseconds a tile on one thread" in card  # an image takes as many times that as it has tiles
    assert "model_int8.onnx" in (tmp_path / "out/SHA256SUMS").read_text()
    paths = [str(path) for path in sorted((tmp_path / "products/widget/test/hole").glob("*.png"))]
    lines = [alone(tmp_path / "out", *paths, *more).stdout for more in ([], ["--model", "model_int8.onnx"])]
    assert lines[0] != lines[1]
    assert len(lines[1].splitlines()) == len(paths)


@pytest.mark.slow
def test_without_the_run_s_images_integers_cannot_be_measured(patchcore: Path, lab, tmp_path: Path, capsys) -> None:
    assert lab("task=export", f"ckpt={patchcore}", "format=int8", "hydra.run.dir=out") == 2
    assert "run's training images are gone: restore them, or leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def patchcore(tiny_net: str, lab, tmp_path: Path) -> Path:
    """An anomaly model's checkpoint without its run."""
    return untrained("patchcore", tiny_net, tmp_path)[1]


@pytest.mark.slow
def test_the_folder_is_whole_and_its_sums_are_right(patchcore: Path, lab, tmp_path: Path, capsys) -> None:
    assert lab("task=export", f"ckpt={patchcore}", "hydra.run.dir=out") == 0
    assert (
        "in a process with onnxruntime, numpy and Pillow alone, decides on 4 images (noise" in capsys.readouterr().out
    )
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "out/SHA256SUMS").read_text().splitlines())
    assert set(sums) == {"model.onnx", "infer.py", "export.json", "model_card.md"}
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert not list(tmp_path.glob("*.tmp"))
    card = (tmp_path / "out/model_card.md").read_text()
    assert "its run is not known here" in card
    assert "It calls no image `UNKNOWN`" in card
    assert lab("task=export", f"ckpt={patchcore}", "hydra.run.dir=out") == 2
    assert "holds another run" in capsys.readouterr().err
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "new.png")
    done = alone(tmp_path / "out", str(tmp_path / "bad.png"), str(tmp_path / "new.png"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"ERROR\t{tmp_path / 'bad.png'}\t")
    assert done.stdout.endswith(f"\t{tmp_path / 'new.png'}\n")
    if hasattr(signal, "SIGPIPE"):  # as `| head -1` leaves it: nobody reads
        ours, theirs = os.pipe()
        os.close(ours)
        script = [sys.executable, str(tmp_path / "out/infer.py"), str(tmp_path / "new.png")]
        done = subprocess.run(script, stdout=theirs, stderr=subprocess.PIPE, text=True)
        os.close(theirs)
        assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


@pytest.mark.slow
def test_a_script_that_needs_more_or_decides_otherwise_is_refused(
    patchcore: Path, lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made = bundle.script
    for change, said in (
        (("import argparse", "import argparse\nimport torch"), "torch is none of onnxruntime, numpy and Pillow"),
        (('return "REJECT"', 'return "OK"'), "infer.py says OK defect"),
        (("/ 255", "/ 250"), "cannot be exported: infer.py says"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("mvtec_lab.tasks.export.script", lambda *a, change=change: made(*a).replace(*change))
            assert lab("task=export", f"ckpt={patchcore}", "hydra.run.dir=out") == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model_card.md", "SHA256SUMS"])
def test_a_full_disk_leaves_nothing(
    file: str, patchcore: Path, lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name.startswith(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert lab("task=export", f"ckpt={patchcore}", "hydra.run.dir=out") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out/export.json").exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_card_says_what_the_run_knows(lab, tmp_path: Path) -> None:
    assert lab("attempt=base", "split.val_is_test=true", "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run", "hydra.run.dir=out") == 0
    card = (tmp_path / "out/model_card.md").read_text()
    for words in (
        "| test |",
        "| accuracy |",
        "always naming the most frequent class",
        "every figure is too good",
        "test images are few",
        "ask whoever took the images",
        "random ones, nobody's",
    ):
        assert words in card, words


@pytest.mark.slow
def test_a_folder_works_where_there_is_nothing_but_its_three_packages(patchcore: Path, lab, tmp_path: Path) -> None:
    assert lab("task=export", f"ckpt={patchcore}", "hydra.run.dir=out") == 0
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "new.png")
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    programs = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    packages = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet"]
    got = subprocess.run([*packages, "onnxruntime", "numpy", "pillow"], capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"the packages cannot be fetched: {got.stderr.strip().splitlines()[-1]}")
    command = [programs / "python", tmp_path / "elsewhere/infer.py", tmp_path / "new.png", "--map", tmp_path / "maps"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\t")[0] in ("OK", "REJECT")
    assert (tmp_path / "maps/new.png.png").is_file()
