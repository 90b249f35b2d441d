"""data=folder: class folders in any place are read, and a wrong place is answered with the command that works."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE
from PIL import Image

from mvtec_lab.cli import main
from mvtec_lab.config import DataConfig, SplitConfig
from mvtec_lab.data.annotations.reading import UNNAMED
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.layouts import LAYOUTS, read_folder, recognise
from mvtec_lab.data.layouts.mvtec import scan
from mvtec_lab.data.samples import Sample
from mvtec_lab.data.source import locate, look
from mvtec_lab.data.splits import settled, split_samples
from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.build import NO_DEFECTS
from mvtec_lab.results import RunResult, read_csv


def fill(folder: Path, count: int = 4, name: str = "{:03}.png", size: tuple[int, int] = (SIZE, SIZE)) -> None:
    """Write images; their pixels depend on their path, so that no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        seed = zlib.crc32("/".join((*folder.parts[-3:], name.format(i))).encode())
        pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(folder / name.format(i))


def draw_masks(
    folder: Path, count: int = 4, name: str = "{:03}_mask.png", box: tuple[int, ...] = (4, 4, 9, 12)
) -> None:
    """Write masks with one rectangle, x0, y0, x1, y1."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[box[1] : box[3], box[0] : box[2]] = 255
        Image.fromarray(mask).save(folder / name.format(i))


@pytest.fixture
def widget(product: Path) -> Path:
    """The tiny product as class folders, <folder>/<class>."""
    for path in (product / "test").iterdir():
        path.rename(product / path.name)
    (product / "test").rmdir()
    shutil.rmtree(product / "train")
    return product


def test_class_folders_in_the_root(widget: Path) -> None:
    (widget / "notes.txt").write_text("not an image")
    Image.new("L", (5, 5)).save(widget / "loose.png")
    (widget / "empty").mkdir()
    assert recognise(widget) == "classes"
    listed = read_folder(widget)
    assert Counter(s.label for s in listed.samples) == {"good": 10, "crack": 6, "hole": 6}
    assert {s.mask for s in listed.samples if s.path == "hole/000.png"} == {"ground_truth/hole/000_mask.png"}
    assert {reason: len(paths) for reason, paths in listed.left_out.items()} == {
        "file(s) that are not images": 1,
        "image(s) in no class folder": 1,
        "folder(s) that hold no image of their own": 1,
    }
    splits = split_samples(listed.samples, SplitConfig())
    assert Counter(s.split for s in splits) == {"train": 14, "val": 4, "test": 4}  # of all images
    alone = Counter((s.label, s.split) for s in split_samples(listed.samples, SplitConfig(protocol="one_class")))
    assert alone == {
        ("good", "train"): 6, ("good", "val"): 2, ("good", "test"): 2, ("crack", "test"): 6, ("hole", "test"): 6,
    }  # fmt: skip


def test_class_folders_train(lab, widget: Path, tmp_path: Path) -> None:
    assert lab("hydra.run.dir=run") == 0
    rows = read_csv(tmp_path / "run/samples.csv")
    assert {row["path"].split("/")[0] for row in rows} == {"good", "crack", "hole"}
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged") == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["drawn_from_all"]
    assert lab("task=describe", "hydra.run.dir=d") == 0
    assert json.loads((tmp_path / "d/dataset.json").read_text())["found"] == {"crack": 6, "good": 10, "hole": 6}
    trained, judged = (
        json.loads((tmp_path / name).read_text())["metrics"] for name in ("run/result.json", "judged/metrics.json")
    )
    assert judged["test"]["accuracy"] == trained["test"]["accuracy"]


def test_parts_are_read_and_taken_by_own(lab, widget: Path, tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        for name in ("good", "crack"):
            fill(tmp_path / "divided" / part / name, {"train": 6, "valid": 3, "test": 4}[part])
    folder = tmp_path / "divided"
    draw_masks(folder / "ground_truth/crack")
    draw_masks(folder / "ground_truth/train/crack", 6)
    (folder / "archive").mkdir()
    assert recognise(folder) == "parts"
    listed = read_folder(folder)
    assert Counter(s.split for s in listed.samples) == {"train": 12, "val": 6, "test": 8}
    assert {s.mask for s in listed.samples if s.label != "good" and s.split == "test"} == {
        f"ground_truth/crack/{i:03}_mask.png" for i in range(4)
    }
    assert "ground_truth/train/crack/000_mask.png" in {s.mask for s in listed.samples}
    assert list(listed.left_out) == ["folder(s) beside train, val and test"]
    assert listed.mask_problems == []  # images for validation have no folder of masks
    own = split_samples(listed.samples, SplitConfig(protocol="own"))
    assert [s.split for s in own] == [s.split for s in listed.samples]
    assert lab(f"data.root={folder}", "split.protocol=own", "hydra.run.dir=run") == 0
    counts = json.loads((tmp_path / "run/result.json").read_text())["counts"]
    assert counts == {
        "train": {"good": 6, "crack": 6}, "val": {"good": 3, "crack": 3}, "test": {"good": 4, "crack": 4}
    }  # fmt: skip


def test_a_divided_folder_that_is_drawn_from_says_so(widget: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("good", "crack"):
            fill(tmp_path / "divided" / part / name, 6)
    data = MVTecDataModule(tmp_path / "divided")
    data.scan()
    (line,) = [line for line in data.warnings if "split.protocol=own" in line]
    assert line.startswith("the images are divided already, into train, test")


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """A folder that is divided into train, val and test, two classes each."""
    for part, count in {"train": 6, "val": 3, "test": 4}.items():
        for name in ("good", "crack"):
            fill(tmp_path / "divided" / part / name, count)
    return tmp_path / "divided"


@pytest.mark.slow
def test_a_folders_own_division_is_taken_and_recorded(lab, divided: Path, tmp_path: Path, capsys) -> None:
    words = [f"data.root={divided}", "hydra.run.dir=run"]
    assert lab(*words) == 0
    run = RunResult.load(tmp_path / "run")
    assert {split: sum(counts.values()) for split, counts in run.counts.items()} == {"train": 12, "val": 6, "test": 8}
    assert "protocol: own" in (tmp_path / "run/config.yaml").read_text()
    assert "split.protocol=own: the data are divided already, into train, val, test" in capsys.readouterr().err
    assert not [warning for warning in run.warnings if "divided" in warning]
    assert lab(*words, "resume=true") == 0
    assert "run is completed: nothing to do" in capsys.readouterr().err
    assert lab("task=describe", f"data.root={divided}", "hydra.run.dir=d") == 0
    facts = json.loads((tmp_path / "d/dataset.json").read_text())
    assert facts["split"]["protocol"] == "own"
    assert facts["classes_by_split"]["test"] == {"good": 4, "crack": 4}
    assert main(["task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged"]) == 0
    judged = json.loads((tmp_path / "judged/metrics.json").read_text())
    assert judged["metrics"]["test"]["accuracy"] == run.metrics["test"]["accuracy"]
    for part in ("good", "crack"):  # another folder need not be divided
        fill(tmp_path / "undivided" / part, 8)
    words = ["task=evaluate", "ckpt=run/best.ckpt", f"data.root={tmp_path / 'undivided'}"]
    assert main([*words, "hydra.run.dir=others"]) == 0
    assert json.loads((tmp_path / "others/metrics.json").read_text())["metrics"]["test"]["images"] == 4


def test_a_run_that_drew_from_a_divided_folder_goes_on_so(lab, divided: Path, tmp_path: Path) -> None:
    words = [f"data.root={divided}", "hydra.run.dir=run"]
    assert lab(*words, "split.protocol=holdout") == 0
    run = RunResult.load(tmp_path / "run")
    (line,) = [warning for warning in run.warnings if "split.protocol=own" in warning]
    assert line.startswith("the images are divided already, into train, val, test, and holdout draws from all")
    (tmp_path / "run/last.ckpt").unlink()
    content = json.loads((tmp_path / "run/result.json").read_text())
    (tmp_path / "run/result.json").write_text(json.dumps({**content, "status": "failed", "error": "broken off"}))
    assert lab(*words, "resume=true") == 0  # by auto, which was not there when the run began
    again = RunResult.load(tmp_path / "run")
    assert again.counts == run.counts
    assert again.metrics == run.metrics
    assert lab(*words, "resume=true", "split.protocol=own") == 2  # typed: another run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "protocol"),
    [("split.per_class=8", "holdout"), ("split.pool=all", "holdout"), ("-m cv.folds=3", "kfold")],
)
def test_settings_of_a_draw_draw_from_a_divided_folder(
    lab, divided: Path, tmp_path: Path, words: str, protocol: str
) -> None:
    many = words.startswith("-m")
    assert lab(*words.split(), f"data.root={divided}", "hydra.sweep.dir=out" if many else "hydra.run.dir=out/run") == 0
    configs = list((tmp_path / "out").glob("*/config.yaml"))
    assert len(configs) == (3 if many else 1)
    for file in configs:
        assert f"protocol: {protocol}" in file.read_text()
        assert any(f"and {protocol} draws from all" in line for line in RunResult.load(file.parent).warnings)


def test_what_a_division_does_not_allow_names_holdout(lab, divided: Path, tmp_path: Path, capsys) -> None:
    words = [f"data.root={divided}", "hydra.run.dir=run"]
    assert lab(*words, "split.test=0.4") == 2
    said = capsys.readouterr().err
    assert "split.test=0.4 does nothing for a data set that has test images of its own: leave it out" in said
    fill(divided / "test/hole", 4)
    assert lab(*words) == 2
    said = capsys.readouterr().err
    assert "class 'hole' has no training image: the network cannot learn it; split.protocol=holdout draws from" in said
    assert not (tmp_path / "run").exists()
    assert lab(*words, "split.protocol=own") == 2
    assert "holdout draws" not in capsys.readouterr().err


def test_what_is_not_divided_for_a_classifier_is_drawn_from(product: Path, widget: Path) -> None:
    for folder in (product, widget):  # MVTec's layout trains on good images alone
        samples = read_folder(folder).samples
        assert settled(samples, SplitConfig(protocol="auto")).protocol == "holdout"
        assert split_samples(samples, SplitConfig(protocol="auto")) == split_samples(samples, SplitConfig())


@pytest.mark.parametrize(("given", "good"), [("OK", ["ok"]), ("Gut", ["OK", "gut"]), ("Good", ["good"])])
def test_the_good_class_may_have_any_name(widget: Path, given: str, good: list[str]) -> None:
    (widget / "good").rename(widget / given)
    listed = read_folder(widget, good=good)
    assert Counter(s.label for s in listed.samples) == {"good": 10, "crack": 6, "hole": 6}
    assert {s.path.split("/")[0] for s in listed.samples if s.label == "good"} == {given}


def test_mvtecs_layout_with_another_good_class(product: Path) -> None:
    for part in ("train", "test"):
        (product / part / "good").rename(product / part / "OK")
    wrong = read_folder(product)
    assert Counter(s.label for s in wrong.samples) == {"OK": 10, "crack": 6, "hole": 6}
    assert "folder(s) of train/ beside train/good" in wrong.left_out
    used = [replace(s, split="test") for s in wrong.samples]
    assert "give data.good=[OK] if OK is the class of good images" in wrong.oddities(used)[-1]
    right = read_folder(product, good=["ok"])
    assert Counter(s.label for s in right.samples) == {"good": 14, "crack": 6, "hole": 6}
    masks = {s.mask for s in right.samples if s.label == "good"}
    assert masks == {None}


def test_a_missing_good_class_has_a_remedy(lab, widget: Path, tmp_path: Path, capsys) -> None:
    (widget / "good").rename(widget / "Ok")
    assert lab("task=describe", "hydra.run.dir=d") == 0
    warnings = json.loads((tmp_path / "d/dataset.json").read_text())["warnings"]
    said = (
        "no class is called 'good' (there are Ok, crack, hole): give data.good=[Ok] if Ok is the class of good images"
    )
    assert f"{said}: every image counts as a defect" in warnings
    assert lab("attempt=patchcore", "model.options.layers=[features.relu1]") == 2
    assert said in capsys.readouterr().err
    assert lab("data.good=[gut,normal]") == 2
    assert "no class is called gut or normal (data.good): there are Ok, crack, hole" in capsys.readouterr().err
    assert lab("data.good=[gut,ok]", "hydra.run.dir=run") == 0
    assert json.loads((tmp_path / "run/result.json").read_text())["classes"] == ["good", "crack", "hole"]
    assert main(["task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged"]) == 0  # with data.good of the run


def test_no_other_data_takes_good(lab, capsys) -> None:
    assert lab("data=sample", "data.good=[OK]") == 2
    assert "data.good=['OK'] does nothing for data.name=sample" in capsys.readouterr().err


def _wrong(product: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> what is typed, and what is answered."""
    root = product.parent
    fill(tmp_path / "flat")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing/readme.txt").write_text("no image")
    shutil.make_archive(str(tmp_path / "zipped/photos"), "zip", product)
    shutil.copytree(product, tmp_path / "beside/widget")
    fill(tmp_path / "beside", 1)
    (tmp_path / "beside/labels.csv").write_text("path,label")
    fill(tmp_path / "yolo/images/train")
    (tmp_path / "yolo/data.yaml").write_text("names: [crack]")
    return {
        "above": ([f"data.root={root}"], "for one of its products (widget): data.category=widget"),
        "part": ([f"data.root={product / 'test'}"], f"is a part of the product {product}: give data.root={product}"),
        "masks": ([f"data.root={product / 'ground_truth'}"], f"give data.root={product}"),
        "masks of a class": ([f"data.root={product / 'ground_truth/crack'}"], f"is a class folder of {product}: give"),
        "class": ([f"data.root={product / 'test/crack'}"], f"is a class folder of {product}: give data.root={product}"),
        "category twice": (
            [f"data.root={product}", "data.category=widget"],
            f"{product} is a product itself: give data.root={root}",
        ),
        "flat": ([f"data.root={tmp_path / 'flat'}"], "holds 4 image(s) but no class folders: if"),
        "nothing": ([f"data.root={tmp_path / 'nothing'}"], ".heif): it holds readme.txt"),
        "typo": ([f"data.root={root / 'wigdet'}"], f"is not a folder: did you mean data.root={product}?"),
        "photo beside": ([f"data.root={tmp_path / 'beside'}"], "for one of its products (widget)"),
        "a list": ([f"data.root={tmp_path / 'beside/labels.csv'}"], f"is a list: give data.labels={tmp_path}"),
        "missing": ([f"data.root={root / 'nothing/deeper'}"], f"is not a folder: {root} holds widget"),
        "archive": ([f"data.root={tmp_path / 'zipped/photos.zip'}"], f"is an archive: give data.archive={tmp_path}"),
        "archive inside": ([f"data.root={tmp_path / 'zipped'}"], "holds no image but the archive photos.zip: give"),
        "image": ([f"data.root={product / 'test/crack/000.png'}"], "is an image: give the folder around its"),
        "annotations": ([f"data.root={tmp_path / 'yolo'}"], "has annotations in YOLO's format: give data=yolo"),
        "windows": ([r"data.root=C:\plant\pictures"], r"data.root=C:\plant\pictures is a Windows path"),
        "backslashes": (["data.root=C:plantpictures"], "has lost its backslashes to the shell"),
        "blank": (["data.root=/data/my", "new", "pictures", "seed=1"], '"data.root=/data/my new pictures"'),
        "list": (["data.good=[OK,", "gut]"], 'a blank needs quotes: "data.good=[OK, gut]"'),
        "mvtec": (["data=mvtec", f"data.root={tmp_path}", "data.category=bottle"], f"{tmp_path / 'mvtec'}"),
    }  # fmt: skip


WRONG = (
    "above", "part", "masks", "masks of a class", "class", "category twice", "flat", "nothing", "missing", "typo",
    "photo beside", "a list", "archive", "archive inside",
    "image", "annotations", "windows", "backslashes", "blank", "list", "mvtec",
)  # fmt: skip


def test_ok_and_ng_of_a_line_are_two_classes(lab, widget: Path, capsys) -> None:
    for name, new in (("good", "OK"), ("crack", "NG")):
        (widget / name).rename(widget / new)
    shutil.rmtree(widget / "hole")
    assert recognise(widget) == "classes"  # not Real-IAD's, whose OK/ and NG/ hold folders of parts
    assert lab("task=describe", "data=folder", f"data.root={widget}") == 0
    assert "give data.good=[OK]" in " ".join(capsys.readouterr().out.split())
    assert {s.label for s in read_folder(widget, good=["OK"]).samples} == {"good", "NG"}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_place_is_one_line_with_what_would_work(lab, product: Path, tmp_path: Path, capsys, name: str) -> None:
    shutil.copytree(product, tmp_path / "mvtec/bottle")
    arguments, said = _wrong(product, tmp_path)[name]
    capsys.readouterr()
    for words in (arguments, ["-m", "attempt=base,cosine", *arguments]):
        assert lab(*words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_one_class_folder_alone_is_asked_about(widget: Path, tmp_path: Path) -> None:
    for name in ("crack", "hole", "ground_truth"):
        shutil.rmtree(widget / name)
    assert recognise(widget) == "classes"  # good images alone
    (widget / "good").rename(widget / "OK")
    with pytest.raises(LabError, match=r"has one class folder alone, OK: give data.good=\[OK\] if its images"):
        recognise(widget)
    assert {s.label for s in read_folder(widget, good=["OK"]).samples} == {"good"}
    fill(tmp_path / "data/pictures")  # beside the folder of the products
    shutil.copytree(widget, tmp_path / "data/products/widget/test")
    with pytest.raises(LabError, match=r"does not hold class folders of images, but .*/products/widget does: give"):
        recognise(tmp_path / "data")


def test_a_flat_folder_is_told_what_it_may_be(widget: Path, tmp_path: Path) -> None:
    with pytest.raises(
        LabError, match=f"if it is a class itself, as good beside it, give data.root={widget}; else move them"
    ):
        recognise(widget / "crack")
    fill(tmp_path / "alone/flat")
    with pytest.raises(LabError, match=r"but no class folders: move them into .*/flat/<class>, all good ones into"):
        recognise(tmp_path / "alone/flat")


def test_files_of_other_formats_beside_a_known_layout_do_not_matter(widget: Path) -> None:
    (widget / "classes.txt").write_text("crack\nhole\n")
    assert recognise(widget) == "classes"


def test_a_product_far_below_is_named_in_quotes(product: Path, tmp_path: Path) -> None:
    inner = tmp_path / "my pictures/download/widget"
    shutil.copytree(product, inner)
    with pytest.raises(LabError, match=r"does not hold class folders of images, but .* does: give") as error:
        recognise(tmp_path / "my pictures")
    assert str(error.value).endswith(f'give "data.root={inner}"')


@pytest.mark.slow
def test_the_place_is_checked_before_torch_is_imported(product: Path, tmp_path: Path) -> None:
    (product / "labels.csv").write_text("name,colour\n1,2\n")
    for words in (
        [f"data.root={product / 'test'}"],
        ["-m", "attempt=base,cosine", f"data.root={product.parent}"],
        [f"data.root={product}", "data.labels=labels.csv"],
        ["-m", f"data.root={product}", "cv.folds=8"],
        [f"data.root={product}", "split.group_by=(serial)"],
    ):
        code = (
            "import sys; from mvtec_lab.cli import main; status = main(sys.argv[1:]); "
            "sys.exit(status if 'torch' not in sys.modules else 99)"
        )
        done = subprocess.run([sys.executable, "-c", code, "data=folder", *words], cwd=tmp_path, check=False)
        assert done.returncode == 2


def test_days_of_one_product_are_joined_by_a_list(lab, tmp_path: Path, capsys) -> None:
    root = tmp_path / "line 3"
    for day in ("2024-05-01", "2024-05-02", "2024-05-03"):
        for name in ("OK", "scratch"):
            fill(root / day / name, 5)
    assert lab(f"data.root={root}") == 2
    said = capsys.readouterr().err
    assert "for one of its products (2024-05-01, 2024-05-02, 2024-05-03): data.category=2024-05-01; or, if" in said
    remedy = f'name all images in a list: data.labels=FILE.csv (columns path,label,group) "data.root={root}"'
    assert remedy in said
    rows = [f"{p.relative_to(root).as_posix()},{p.parts[-2]},{p.parts[-3]}" for p in root.rglob("*.png")]
    (tmp_path / "days.csv").write_text("\n".join(["path,label,group", *rows]))
    listed = read_folder(root, good=["OK"], labels=tmp_path / "days.csv")
    assert Counter(s.label for s in listed.samples) == {"good": 15, "scratch": 15}
    assert {s.group for s in listed.samples} == {"2024-05-01", "2024-05-02", "2024-05-03"}
    for day in ("2024-05-02", "2024-05-03"):  # products have classes of their own
        (root / day / "scratch").rename(root / day / f"defect of {day}")
    assert lab(f"data.root={root}") == 2
    assert "days or batches" not in capsys.readouterr().err


def test_the_sample_is_not_drawn_beside_images_of_one_s_own(lab, product: Path, widget: Path, tmp_path: Path) -> None:
    for root in (product, product.parent, widget):
        data = DataConfig(root=str(root))
        with pytest.raises(LabError) as error:
            look(data)
        assert f"the sample is drawn, not read from it: give data=folder data.root={root}, or" in str(error.value)
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "none", DataConfig().root):
        assert look(DataConfig(root=str(root))) is None
    (product / "cable").mkdir()  # where a sample lies already, it is taken
    assert look(DataConfig(root=str(product))) is None


def test_good_images_alone(lab, product: Path, tmp_path: Path, capsys) -> None:
    for name in ("test", "ground_truth"):
        shutil.rmtree(product / name)
    fill(product / "train/good", 10)
    assert recognise(product) == "parts"
    words = ["attempt=patchcore", "model.options.layers=[features.relu1,features.relu2]"]
    assert lab(*words, "split.test=0.3", "hydra.run.dir=run") == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["counts"] == {
        "train": {"good": 6, "defect": 0}, "val": {"good": 1, "defect": 0}, "test": {"good": 3, "defect": 0}
    }  # fmt: skip
    assert NO_DEFECTS in result["warnings"]
    test = result["metrics"]["test"]
    assert test["image_auroc"] is None
    assert test["f1"] is None
    assert test["false_alarm_rate"] is not None
    assert result["threshold"]["rule"] == "quantile"
    (drawn,) = [line for line in result["warnings"] if "no test images of its own" in line]
    assert drawn.endswith("3 good images, drawn by split.test=0.3, and all 0 defects are tested")
    assert lab("task=describe", "attempt=patchcore", "split.test=0.3", "hydra.run.dir=d") == 0
    facts = json.loads((tmp_path / "d/dataset.json").read_text())
    assert drawn in facts["warnings"]
    assert facts["found"] == {"good": 10}
    capsys.readouterr()
    assert main(["task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged"]) == 0
    judged = json.loads((tmp_path / "judged/metrics.json").read_text())
    assert judged["metrics"]["test"]["false_alarm_rate"] == test["false_alarm_rate"]
    assert not [line for line in judged["warnings"] if "trained this checkpoint" in line]
    assert lab() == 2
    assert "the split has a single class, good, and a classifier" in capsys.readouterr().err


@pytest.mark.slow
def test_nothing_ranks_models_without_defects(lab, product: Path, capsys) -> None:
    shutil.rmtree(product / "test")
    fill(product / "train/good", 8)
    words = ["model.options.layers=[features.relu1]", "threshold.quantile=0.9,0.8"]
    assert lab("-m", "attempt=patchcore", *words, "hydra.sweep.dir=s") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Nothing ranks these 2 attempts: none has a test image AUROC." in out
    assert "best on test" not in out


def test_a_share_that_nothing_is_drawn_by_is_refused(product: Path, tmp_path: Path) -> None:
    samples = scan(product).samples
    with pytest.raises(LabError, match=r"split.test=0.3 does nothing for a data set that has test images of its own"):
        split_samples(samples, SplitConfig(protocol="one_class", test=0.3))
    own = [
        Sample(f"{part}/{i}", "good", None, f"{part}/{i}", part) for part in ("train", "val", "test") for i in range(4)
    ]
    splits = split_samples(own, SplitConfig(protocol="one_class"))
    assert [s.split for s in splits] == [s.split for s in own]  # its own validation images validate
    with pytest.raises(LabError, match=r"split.val=0.3 does nothing for a data set that has validation images"):
        split_samples(own, SplitConfig(protocol="one_class", val=0.3))


def test_groups_stay_together_where_defects_are_tested(tmp_path: Path) -> None:
    samples = [
        Sample(f"{label}/{part}_{i}.png", label) for label in ("good", "crack") for part in range(8) for i in (0, 1)
    ]
    kept = [s for s in samples if s.label == "good" or "/0_" in s.path]
    splits = split_samples(kept, SplitConfig(protocol="one_class", group_by=r"(\d)_"))
    homes: dict[str, set[str]] = {}
    for s in splits:
        homes.setdefault(s.group, set()).add(s.split)
    assert all(len(where) == 1 for where in homes.values())
    assert homes["0"] == {"test"}  # its good images as well
    assert list(homes.values()).count({"test"}) == 2  # and one of the seven others


def test_every_layout_says_where_its_images_lie() -> None:
    assert all(layout.title and layout.shape for layout in LAYOUTS.values())


@pytest.mark.slow
@pytest.mark.parametrize("top", ["", "download/photos/"])
def test_an_archive_of_class_folders_with_or_without_a_top_folder(lab, widget: Path, tmp_path: Path, top: str) -> None:
    packed = tmp_path / "packed" / top
    shutil.copytree(widget, packed)
    (packed / ".profile").write_text("not for a home folder")
    (packed / "run.sh").write_text("nor this")
    (packed / "crack/.DS_Store").write_text("litter")
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "packed")
    target = tmp_path / "unpacked/photos"
    words = [f"data.archive={archive}", f"data.root={target}"]
    assert lab(*words, "hydra.run.dir=run") == 0
    assert sorted(path.name for path in target.iterdir()) == ["crack", "good", "ground_truth", "hole"]
    assert sorted(path.name for path in target.parent.iterdir()) == ["photos"]
    assert not (target / "crack/.DS_Store").exists()
    Path(archive).unlink()
    assert lab(*words, "hydra.run.dir=again") == 0  # it is there


def test_an_archive_of_good_images_keeps_their_folder(product: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "good"), "zip", product, "train/good")
    folder = locate("folder", str(tmp_path / "out"), None, archive)
    assert [s.path for s in read_folder(folder).samples] == [f"train/good/{i:03}.png" for i in range(4)]
    archive = shutil.make_archive(str(tmp_path / "flat"), "zip", product / "train", "good")
    folder = locate("folder", str(tmp_path / "other"), None, archive)
    assert {s.label for s in read_folder(folder).samples} == {"good"}


def test_a_category_of_an_archive(product: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(product, tmp_path / "packed/top" / name)
    archive = shutil.make_archive(str(tmp_path / "both"), "gztar", tmp_path / "packed")
    with pytest.raises(LabError, match=r"has no folder 'three': it holds one, two: correct data.category"):
        locate("folder", str(tmp_path / "out"), "three", archive)
    assert not (tmp_path / "out").exists()
    assert locate("folder", str(tmp_path / "out"), "one", archive) == tmp_path / "out/one"
    assert (tmp_path / "out/two").is_dir()  # beside a category lie the lists of some data sets
    shutil.rmtree(tmp_path / "out/one")
    locate("folder", str(tmp_path / "out"), "one", archive)
    assert len(scan(tmp_path / "out/one").samples) == 26


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A folder of twelve images with masks of some, and no class folders."""
    fill(tmp_path / "plant/pictures", 12)
    draw_masks(tmp_path / "plant/masks", 4)
    return tmp_path / "plant"


def rows(**more: str) -> list[dict[str, str]]:
    """Rows of a list: four scratches, then eight good images."""
    return [
        {
            "path": f"pictures/{i:03}.png",
            "label": "scratch" if i < 4 else "OK",
            "mask": f"masks/{i:03}_mask.png" if i < 4 else "",
            **{name: value.format(i=i, half=i // 2) for name, value in more.items()},
        }
        for i in range(12)
    ]


def as_csv(table: list[dict[str, str]], delimiter: str = ",") -> str:
    return "".join(delimiter.join(line) + "\n" for line in [list(table[0]), *(list(row.values()) for row in table)])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", as_csv(rows())),
        ("labels.csv", "\ufeff" + as_csv(rows(), ";").replace("path;label", "Datei;Klasse")),
        ("labels.csv", as_csv(rows(), "\t").replace("/", "\\")),
        ("labels.json", json.dumps(rows())),
        ("labels.json", json.dumps({row["path"]: row["label"] for row in rows()})),
    ],
)
def test_a_list_of_paths_and_labels(listed: Path, name: str, content: str) -> None:
    (listed / name).write_text(content, encoding="utf-8")
    found = read_folder(listed, good=["ok"], labels=name)
    assert [(s.path, s.label) for s in found.samples] == [
        (f"pictures/{i:03}.png", "scratch" if i < 4 else "good") for i in range(12)
    ]
    masks = [f"masks/{i:03}_mask.png" for i in range(4)]
    if "mask" in content:
        assert [s.mask for s in found.samples[:5]] == [*masks, None]
        assert found.left_out == {}
    else:
        assert found.left_out == {UNNAMED: [str(listed / mask) for mask in masks]}


def test_a_folder_called_test_says_nothing_in_a_list(listed: Path) -> None:
    (listed / "pictures").rename(listed / "test")
    (listed / "labels.csv").write_text(as_csv(rows()).replace("pictures/", "test/"))
    samples = read_folder(listed, good=["OK"], labels="labels.csv").samples
    alone = Counter((s.label, s.split) for s in split_samples(samples, SplitConfig(protocol="one_class")))
    assert alone == {("good", "train"): 5, ("good", "val"): 1, ("good", "test"): 2, ("scratch", "test"): 4}


def test_a_list_trains_and_says_its_parts_and_groups(lab, listed: Path, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.csv"
    parts = rows(group="part{half}")
    for i, row in enumerate(parts):
        row["split"] = "test" if i in (2, 3, 4, 5, 6, 7) else "train"
        row["path"] = str(listed / row["path"])
    file.write_text(as_csv(parts))
    words = [f"data.root={listed}", "data.good=[OK]", "data.labels=elsewhere.csv"]
    found = read_folder(listed, labels=file, good=["OK"])
    assert [s.group for s in found.samples[:4]] == ["part0", "part0", "part1", "part1"]
    assert lab(*words, "split.val_is_test=true", "hydra.run.dir=run") == 0
    assert "protocol: own" in (tmp_path / "run/config.yaml").read_text()
    counts = json.loads((tmp_path / "run/result.json").read_text())["counts"]
    assert counts["train"] == {"good": 4, "scratch": 2}
    assert counts["test"] == {"good": 4, "scratch": 2}
    assert main(["task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged"]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda text: text.replace("label", "colour", 1),
            "has the columns path, colour, mask: it needs path and",
        ),
        (lambda text: text.replace("003.png", "999.png", 1), "line 5: pictures/999.png does not exist in"),
        (lambda text: text.replace("001.png", "000.png", 1), "line 3: pictures/000.png is listed twice"),
        (lambda text: text.replace(",scratch", ",", 1), "line 2 has no label"),
        (lambda text: text.replace("pictures/001.png", "../x/001.png", 1), "leads out of"),
        (lambda text: text.replace("pictures/001.png", "/etc/001.png", 1), "/etc/001.png does not lie in"),
        (lambda text: text.replace("masks/001", "masks/111", 1), "line 3: masks/111_mask.png does not exist"),
        (lambda text: text.splitlines()[0] + "\n", "the list names no image"),
    ],
)
def test_a_wrong_list_is_refused_with_its_line(listed: Path, change, said: str) -> None:
    (listed / "labels.csv").write_text(change(as_csv(rows())))
    with pytest.raises(LabError) as error:
        read_folder(listed, good=["OK"], labels="labels.csv")
    assert said in str(error.value)


def test_parts_of_a_list_are_given_to_all_or_none(listed: Path) -> None:
    table = rows(split="train")
    (listed / "labels.csv").write_text(as_csv(table).replace("train", "", 1))
    with pytest.raises(LabError, match="some images have a split and others none"):
        read_folder(listed, labels="labels.csv")
    (listed / "labels.csv").write_text(as_csv(table).replace("train", "trian", 1))
    with pytest.raises(LabError, match="line 2: unknown split 'trian': did you mean train"):
        read_folder(listed, labels="labels.csv")
    (listed / "labels.json").write_text("[1, 2]")
    with pytest.raises(LabError, match="neither a list of objects nor an object from path to label"):
        read_folder(listed, labels="labels.json")
    with pytest.raises(LabError, match=r"data.labels=none.csv does not exist, neither here nor in"):
        read_folder(listed, labels="none.csv")
