"""task=monitor: new images that are like those of training, and such that are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import laboratory, write_product

from mvtec_lab.data.images import read_image
from mvtec_lab.results import read_csv


@pytest.fixture(scope="module")
def line(tiny_net: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., int]]:
    """A folder with a run of a classifier, and the command line in it."""
    folder = tmp_path_factory.mktemp("line")
    product = write_product(folder / "products/widget", {"good": 24, "crack": 6, "hole": 6})
    lab = laboratory(tiny_net, product, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert lab("attempt=base", "hydra.run.dir=run") == 0
    return folder, lab


@pytest.fixture
def monitor(line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Compare altered images with those of the run: ``monitor(change, ...)`` -> exit status, monitor.json."""
    folder, lab = line
    monkeypatch.chdir(folder)

    def run(change: Callable[[np.ndarray], np.ndarray], predict: bool = False) -> tuple[int, dict[str, Any]]:
        altered(folder, tmp_path / "new", change)
        new = tmp_path / "new"
        if predict:
            assert lab("task=predict", "ckpt=run", f"source={new}", f"hydra.run.dir={tmp_path / 'day'}") == 0
            new = tmp_path / "day"
        status = lab("task=monitor", "reference=run", f"predictions={new}", f"hydra.run.dir={tmp_path / 'out'}")
        return status, json.loads((tmp_path / "out/monitor.json").read_text())

    return run


def altered(folder: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    target.mkdir()
    for path in sorted((folder / "products/widget/test/good").glob("*.png"))[:20]:
        cv2.imwrite(str(target / path.name), change(read_image(path))[..., ::-1])


def test_unchanged_images_are_not_called_changed(monitor, capsys: pytest.CaptureFixture[str]) -> None:
    status, facts = monitor(lambda image: image, predict=True)
    assert (status, facts["changed"]) == (0, False)
    assert "NO CHANGE SHOWN: 20 new images" in capsys.readouterr().out
    assert {test["name"] for test in facts["tests"]} == {"brightness", "sharpness", "colour", "features", "score"}


def test_brighter_images_are_called_so(monitor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, facts = monitor(lambda image: (image * 1.1).astype(np.uint8))
    assert (status, facts["changed"]) == (3, True)
    captured = capsys.readouterr()
    assert "CHANGED: images are 9." in captured.out
    assert "changed: images are 9." in captured.err
    changed = {test["name"] for test in facts["tests"] if test["changed"]}
    assert "brightness" in changed
    assert "sharpness" not in changed
    page = (tmp_path / "out/report.html").read_text()
    assert "brighter" in page
    assert page.count("<img") == 5 + 2 * 6
    rows = read_csv(tmp_path / "out/images.csv")
    assert [row["set"] for row in rows].count("new") == 20
