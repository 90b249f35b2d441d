"""Class-activation maps: they lie where the evidence lies, on every backbone, and change nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_backbones import FAMILIES
from test_reporting import fabricate, page, text_of

from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.problems.classification.activation import activation_maps
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.problems.classification.explanations import explain
from mvtec_lab.problems.classification.outcome import Outcome
from mvtec_lab.results import EXPLANATIONS, RunResult, read_csv

SIZE, CLASSES = 32, ["good", "blue", "red"]
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}  # grey is the same in every channel, so that no colour speaks
CORNERS = [(0, 0), (0, 20), (20, 0), (20, 20)]


@pytest.fixture
def by_colour(tiny_net: str) -> DefectClassifier:
    """Blue and red each have a channel and a class of their own; an image without either is good."""
    classifier = DefectClassifier(tiny_net, CLASSES, weights=None, image_size=SIZE)
    layers = [m for m in classifier.model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    first, second, head = layers
    for layer in (first, second, head):
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        for channel, colour in ((1, 2), (2, 0)):
            first.weight[channel, colour], first.weight[channel, 1] = 1, -1
            second.weight[channel, channel] = 1
            head.weight[channel, channel] = 1
        head.bias[0] = 0.1
    return classifier


def painted(**blocks: tuple[int, int]) -> np.ndarray:
    """A grey image with a block of 12 x 12 pixels in each of some colours, by its corner."""
    image = np.full((SIZE, SIZE, 3), 110, np.uint8)
    for colour, (row, column) in blocks.items():
        image[row : row + 12, column : column + 12] = (255, 0, 0) if colour == "red" else (0, 0, 255)
    return image


def as_batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize("corner", CORNERS)
def test_the_map_lies_where_the_class_has_its_evidence(by_colour: DefectClassifier, corner: tuple[int, int]) -> None:
    opposite = (20 - corner[0], 20 - corner[1])
    images = as_batch(*[painted(red=corner, blue=opposite)] * 2)
    maps = activation_maps(by_colour, images, torch.tensor([2, 1]))
    assert maps is not None
    heat, peaks = maps
    assert heat.shape == (2, SIZE, SIZE)
    assert heat.min() == pytest.approx(0)
    assert heat.amax((1, 2)).tolist() == pytest.approx([1, 1])
    for place, (row, column) in enumerate((corner, opposite)):
        assert row <= peaks[place, 0] < row + 12
        assert column <= peaks[place, 1] < column + 12
        assert heat[place, peaks[place, 0], peaks[place, 1]] > 0.9
        inside = heat[place, row : row + 12, column : column + 12].sum()
        assert inside > 0.6 * heat[place].sum()


def test_nothing_speaks_for_the_class(by_colour: DefectClassifier) -> None:
    maps = activation_maps(by_colour, as_batch(painted()), torch.tensor([2]))
    assert maps is not None
    assert not maps[0].any()


# Where the map is taken of small images, whose last one is too coarse; a reference knows the names.
STAGE = {
    "mobilenet_v2": "stage4",
    "resnet18": "layer3",
    "squeezenet1_1": "stage3",
    "swin_t": "stage3",
    "vit_b_32": None,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in STAGE else pytest.param(name, marks=pytest.mark.slow) for name in [*FAMILIES, "vgg11"]]
)
def test_a_family_has_its_map(name: str) -> None:
    """And leaves no trace of it."""
    size = max(64, FAMILIES.get(name, 0))
    torch.manual_seed(0)
    classifier = DefectClassifier(name, 3, weights=None, unfreeze=1, image_size=size)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        classes = classifier.eval()(images).argmax(1)
    classifier.train()
    modes = [module.training for module in classifier.modules()]
    random = torch.get_rng_state()
    maps = activation_maps(classifier, images, classes)
    assert [module.training for module in classifier.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert (maps is None) == name.startswith("vit")
    if maps is None:
        return
    heat, peaks = maps
    assert heat.dtype == torch.float32
    assert heat.shape == (2, size, size)
    assert heat.isfinite().all()
    assert heat.max() == pytest.approx(1)
    assert ((peaks >= 0) & (peaks < size)).all()
    at_peak, hot = heat[[0, 1], peaks[:, 0], peaks[:, 1]], heat.amax((1, 2)) > 0  # random weights may say nothing
    assert torch.equal(at_peak > 0.8, hot)
    if name in STAGE:
        check_against_the_whole_network(classifier, images, classes, heat)


def check_against_the_whole_network(
    classifier: DefectClassifier, images: torch.Tensor, classes: torch.Tensor, heat: torch.Tensor
) -> None:
    seen: list[torch.Tensor] = []
    model = classifier.eval().model.requires_grad_()
    model.get_submodule(STAGE[classifier.hparams["backbone"]]).register_forward_hook(lambda *args: seen.append(args[2]))
    logits = model(images)
    seen[0].retain_grad()
    logits.gather(1, classes[:, None]).sum().backward()
    product = (seen[0] * seen[0].grad).detach()
    grid = product.sum(3 if product.shape[1] == product.shape[2] else 1).relu()
    assert 4 <= grid.shape[-1] < 8
    expected = torch.nn.functional.interpolate(grid[:, None], images.shape[-2:], mode="bilinear")[:, 0]
    torch.testing.assert_close(heat * expected.amax((1, 2), keepdim=True), expected, rtol=1e-3, atol=1e-6)


def write_case(folder: Path, label: str, name: str, image: np.ndarray, mask_at: tuple[int, int] | None) -> None:
    """An image twice as large as the network takes, and a mask of a block's size."""
    for path, array in (
        (folder / "test" / label / f"{name}.png", image),
        (folder / "ground_truth" / label / f"{name}_mask.png", None if mask_at is None else painted(red=mask_at)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        if array is not None:
            pixels = array if "test" in path.parts else np.where(array[..., 0] == 255, 255, 0).astype(np.uint8)
            Image.fromarray(pixels.repeat(2, axis=0).repeat(2, axis=1)).save(path)


@pytest.fixture
def outcome(by_colour: DefectClassifier, tmp_path: Path) -> Outcome:
    """Eleven images: masks where the colour is and where it is not, one broken, some missing, and three mistakes."""
    folder = tmp_path / "painted"
    write_case(folder, "good", "0", painted(), None)
    write_case(folder, "good", "1", painted(red=(0, 20)), None)  # taken for red
    for i, corner in enumerate(CORNERS):
        write_case(folder, "red", f"{i}", painted(red=corner), corner)
    write_case(folder, "red", "elsewhere", painted(red=(0, 0)), (20, 20))
    write_case(folder, "red", "without", painted(red=(0, 0)), None)
    write_case(folder, "red", "broken", painted(red=(0, 0)), (0, 0))
    write_case(folder, "blue", "inside", painted(red=(20, 0)), (20, 0))  # taken for red, for the defect's sake
    write_case(folder, "blue", "outside", painted(red=(20, 0)), (0, 20))  # taken for red
    broken = folder / "ground_truth/red/broken_mask.png"
    broken.write_bytes(broken.read_bytes()[:-30])  # its header still tells the size
    dataset = MVTecDataset(folder, image_size=SIZE, **HALF)
    assert dataset.classes == CLASSES
    probabilities = by_colour.probabilities([dataset[list(range(len(dataset)))]])
    return Outcome("test", dataset, dataset.labels.numpy(), probabilities, {})


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_the_peaks_are_counted_against_the_masks(
    by_colour: DefectClassifier, outcome: Outcome, batch_size: int
) -> None:
    explained, picture = explain(by_colour, outcome, batch_size)
    assert explained == {
        "images": 7,
        "peak_in_mask": 5,
        "mistakes": 2,
        "mistakes_peak_in_mask": 1,
        "chance": pytest.approx((12 / 32) ** 2),
    }
    assert picture is not None
    assert picture.shape[1] == 10 + 6 * 170  # three mistakes, each beside its map, in one row
    assert picture.shape[0] < 2 * 170


def test_without_mistakes_the_least_certain_are_shown(by_colour: DefectClassifier, outcome: Outcome) -> None:
    outcome.labels = outcome.predictions
    explained, picture = explain(by_colour, outcome, 8)
    assert explained is not None
    assert (explained["mistakes"], explained["mistakes_peak_in_mask"]) == (0, 0)
    assert picture is not None
    assert picture.shape[0] > 4 * 160  # eleven images in four rows


@pytest.mark.slow
def test_a_run_leaves_its_explanations(lab, product: Path, tmp_path: Path) -> None:
    assert lab("hydra.run.dir=run") == 0
    run = RunResult.load(tmp_path / "run")
    masked = [s for s in read_csv(tmp_path / "run/samples.csv") if s["split"] == "test" and s["mask"]]
    assert run.explained is not None
    assert run.explained["images"] == len(masked) > 0
    assert 0 <= run.explained["peak_in_mask"] <= run.explained["images"]
    assert 0.02 < run.explained["chance"] < 0.15  # a bar of 3 x 20 or a hole of 5 x 5 in 24 x 24
    assert Image.open(tmp_path / "run" / EXPLANATIONS).width > 300
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=again") == 0
    assert json.loads((tmp_path / "again/metrics.json").read_text())["explained"] == run.explained
    assert (tmp_path / "again" / EXPLANATIONS).read_bytes() == (tmp_path / "run" / EXPLANATIONS).read_bytes()

    shutil.rmtree(product / "ground_truth")
    assert lab("hydra.run.dir=bare") == 0
    bare = RunResult.load(tmp_path / "bare")
    assert bare.explained is not None
    assert (bare.explained["images"], bare.explained["chance"]) == (0, None)
    assert (tmp_path / "bare" / EXPLANATIONS).is_file()
    html = page(tmp_path / "bare")
    assert "What spoke for the predicted class" in html
    assert "random point" not in html


def test_a_backbone_without_a_map(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvtec_lab.problems.classification.classifier.activation_maps", lambda *_: None)  # as of a ViT
    assert lab("hydra.run.dir=run") == 0
    assert RunResult.load(tmp_path / "run").explained is None
    assert not (tmp_path / "run" / EXPLANATIONS).exists()
    html = page(tmp_path / "run")
    assert "no class-activation map for this backbone" in html


def test_the_report_adds_up_the_runs(tmp_path: Path) -> None:
    counts = {"images": 12, "peak_in_mask": 7, "mistakes": 5, "mistakes_peak_in_mask": 1, "chance": 0.04}
    for seed in (0, 1):
        run = fabricate(tmp_path / f"{seed}", "base", seed=seed, explained=counts)
        Image.new("RGB", (40, 40)).save(Path(run.run_dir) / EXPLANATIONS)
    fabricate(tmp_path / "2", "base", seed=2)  # of a version that did not explain
    text = text_of(page(tmp_path))
    assert "in 14 of 24 images of 2 runs together (a random point would in 4.0%)" in text.replace("&#39;", "'")
    assert "12 of the 14 classified rightly, 2 of the 10 mistaken." in text
