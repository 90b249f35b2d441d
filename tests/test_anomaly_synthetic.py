"""Methods that train on changed good images, or on a teacher, on toy images and against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader

from mvtec_lab.errors import LabError
from mvtec_lab.models.backbones import pretrained
from mvtec_lab.problems.anomaly.base import AnomalyModel, Scores
from mvtec_lab.problems.anomaly.methods.cutpaste import model as cutpaste
from mvtec_lab.problems.anomaly.methods.cutpaste.model import Density, paste_patch, paste_scar
from mvtec_lab.problems.anomaly.methods.deep_svdd.model import Sphere
from mvtec_lab.problems.anomaly.methods.draem.model import DraemNetwork, corrupt, draem_loss, image_score, perlin
from mvtec_lab.problems.anomaly.methods.rotation.model import turned, uncertainty
from mvtec_lab.problems.anomaly.methods.stfpm.model import anomaly_map, distance, matching_loss
from mvtec_lab.problems.anomaly.models import build_anomaly_model
from mvtec_lab.problems.anomaly.pretext import FineTuned

SIZE = 32
METHODS = ("stfpm", "supersimplenet", "cutpaste", "deep_svdd", "rotation", "draem")
LEARNING = (*METHODS[:-1], pytest.param("draem", marks=pytest.mark.slow))  # which learns from nothing
LOCALISING = ("stfpm", "supersimplenet", "draem")


def toy(count: int, defect: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, S, S], dark above and bright below, and masks; a defect is a checked square."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(-1.5, 0.5, SIZE)[:, None].expand(SIZE, SIZE)
    images = ramp + 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    if defect:
        checks = 2.0 * (torch.arange(10)[:, None] // 2 + torch.arange(10) // 2).remainder(2).sub(0.5)
        for image, mask in zip(images, masks, strict=True):
            top, left = torch.randint(SIZE - 10, (2,), generator=generator).tolist()
            image[:, top : top + 10, left : left + 10] = checks
            mask[top : top + 10, left : left + 10] = True
    return images, masks


def build(method: str, tiny_net: str, **settings: Any) -> AnomalyModel:
    if method != "draem":
        settings = {"backbone": tiny_net, "weights": None, **settings}
    if method in ("stfpm", "supersimplenet", "deep_svdd"):
        settings.setdefault("layers", ["features.relu1", "features.relu2"])
    if method == "supersimplenet":
        settings |= {"image_size": SIZE, "score": "max", "noise": 2.0}  # strong: to be learnt in 60 steps
    return build_anomaly_model(method, **settings)


def fit(method: str, tiny_net: str, steps: int, lr: float) -> AnomalyModel:
    torch.manual_seed(0)
    images = toy(32, False, 1)[0]
    model = build(method, tiny_net, lr=lr).train()
    model.prepare(lambda: images.split(16))
    optimizer = model.configure_optimizers()
    for _ in range(steps):
        loss = model.loss(images[torch.randperm(len(images))[:8]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.finish(lambda: images.split(16))
    return model.eval()


def scores(model: AnomalyModel, images: Tensor) -> Scores:
    with torch.no_grad():
        return model.scores(images)


@pytest.fixture(scope="module")
def fitted(tiny_net: str) -> Callable[[str], AnomalyModel]:
    """A method that has learnt the toy's good images."""
    rates = {"deep_svdd": 1e-3}
    return cache(lambda method: fit(method, tiny_net, 300 if method == "draem" else 60, rates.get(method, 3e-3)))


@pytest.mark.slow
@pytest.mark.parametrize("method", LEARNING)
def test_obvious_defects_score_higher_than_good_images(method: str, fitted: Callable[[str], AnomalyModel]) -> None:
    scored = scores(fitted(method), torch.cat([toy(16, False, 2)[0], toy(16, True, 3)[0]]))
    assert scored.image.shape == (32,)
    assert scored.image.dtype == torch.float32
    assert scored.image.isfinite().all()
    assert (scored.map is not None) == (method in LOCALISING)
    assert roc_auc_score([0] * 16 + [1] * 16, scored.image) > 0.9


@pytest.mark.parametrize("method", [*LEARNING[:2], LEARNING[-1]])
def test_maps_peak_at_the_defect(method: str, fitted: Callable[[str], AnomalyModel]) -> None:
    images, masks = toy(16, True, 4)
    heat = scores(fitted(method), images).map
    assert heat is not None
    heat = F.interpolate(heat[:, None], SIZE, mode="bilinear")[:, 0]
    near = F.max_pool2d(masks[:, None].float(), 5, 1, 2)[:, 0].bool()  # a cell sees beyond its two pixels
    hits = [bool(mask.flatten()[values.argmax()]) for mask, values in zip(near, heat, strict=True)]
    assert np.mean(hits) > 0.75  # a fifth of the image is near


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_scores_as_what_it_was_saved_from(method: str, tiny_net: str) -> None:
    images, trained = toy(4, True, 5)[0], fit(method, tiny_net, 2, 1e-3)
    torch.manual_seed(7)  # other initial values
    restored = build(method, tiny_net)
    restored.load_state_dict(trained.state_dict())
    assert torch.equal(scores(restored.eval(), images).image, scores(trained, images).image)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_trains_the_same(method: str, tiny_net: str) -> None:
    first, second = (fit(method, tiny_net, 2, 1e-3) for _ in range(2))
    images = toy(4, True, 5)[0]
    assert torch.equal(scores(first, images).image, scores(second, images).image)


def test_lightning_trains_in_train_mode_what_was_prepared_in_eval_mode(tiny_net: str) -> None:
    model = build("stfpm", tiny_net).eval()
    items: Any = [{"image": image} for image in toy(4, False, 0)[0]]
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(items, batch_size=4))
    counted = [value for name, value in model.student.named_buffers() if name.endswith("num_batches_tracked")]
    assert [int(value) for value in counted] == [1, 1]
    assert not any(module.training for module in model.features.modules())


@pytest.mark.parametrize("method", METHODS)
def test_constant_images_are_learnt_and_scored(method: str, tiny_net: str) -> None:
    torch.manual_seed(0)
    images = torch.zeros(4, 3, SIZE, SIZE)
    model = build(method, tiny_net).train()
    model.prepare(lambda: [images])
    model.loss(images).backward()
    model.finish(lambda: [images])
    assert scores(model.eval(), images).image.isfinite().all()


@pytest.mark.parametrize("method", ["cutpaste", "deep_svdd"])
def test_one_good_image_is_too_few(method: str, tiny_net: str) -> None:
    model, image = build(method, tiny_net), toy(1, False, 0)[0]
    learn = model.finish if method == "cutpaste" else model.prepare
    with pytest.raises(LabError, match="two good training images, not 1"):
        learn(lambda: [image])
    with pytest.raises(LabError, match="no good images"):
        learn(lambda: [])


def test_stfpm_multiplies_the_layers_normalised_distances() -> None:
    torch.manual_seed(0)
    teacher, student = ([torch.rand(2, 5, 4, 4), torch.rand(2, 7, 2, 2)] for _ in range(2))
    t, s = teacher[0][1, :, 2, 3].numpy(), student[0][1, :, 2, 3].numpy()
    by_hand = 0.5 * np.sum((t / np.linalg.norm(t) - s / np.linalg.norm(s)) ** 2)
    fine, coarse = (distance(*pair) for pair in zip(teacher, student, strict=True))
    assert fine[1, 2, 3].item() == pytest.approx(by_hand, rel=1e-5)
    assert matching_loss(teacher, student).item() == pytest.approx((fine.mean() + coarse.mean()).item())
    corner = fine[0, 0, 0] * coarse[0, 0, 0]  # where bilinear interpolation leaves a corner's value
    assert anomaly_map(teacher, student)[0, 0, 0].item() == pytest.approx(corner.item())
    assert anomaly_map(teacher, teacher).abs().max() == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta stands for a GPU
def test_stfpm_reads_images_channels_first_where_kernels_are_slow_to_start(device: str, tiny_net: str) -> None:
    model, first = build("stfpm", tiny_net).to(device), []
    for network in (model.features.network, model.student):
        network.register_forward_pre_hook(lambda _, given: first.append(given[0].is_contiguous()))
    images = torch.rand(2, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    model.loss(images)
    assert first == [device != "cpu"] * 2


def test_stfpm_leaves_its_teacher_alone(fitted: Callable[[str], AnomalyModel], tiny_net: str) -> None:
    torch.manual_seed(0)
    untrained = build("stfpm", tiny_net).state_dict()
    trained = fitted("stfpm").state_dict()
    same = {name: torch.equal(untrained[name], value) for name, value in trained.items()}
    assert all(kept for name, kept in same.items() if name.startswith("features."))
    assert not any(kept for name, kept in same.items() if name.startswith("student.") and name.endswith("weight"))


@pytest.mark.parametrize("paste", [paste_patch, paste_scar])
def test_cutpaste_changes_a_piece_of_the_papers_size(paste: Any) -> None:
    torch.manual_seed(0)
    image = torch.rand(3, 256, 256)
    before, areas = image.clone(), []
    for _ in range(50):
        changed = paste(image)
        assert changed.shape == image.shape
        assert changed.min() >= 0
        assert changed.max() <= 1
        areas.append((changed != image).any(0).float().sum().item())
    assert torch.equal(image, before)
    least, most = (0.02 * 256**2, 0.15 * 256**2) if paste is paste_patch else (2 * 10, 16 * 25)
    # a tenth: lengths are whole pixels, and turned ones of another count
    assert min(areas) >= 0.9 * least
    assert max(areas) <= 1.1 * most


class Given(torch.nn.Module):
    """A classifier that keeps the images it sees, and returns these logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.logits


def test_cutpaste_tells_good_patched_and_scarred_images_apart(tiny_net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutpaste, "paste_patch", lambda picture: torch.full_like(picture, 0.2))
    monkeypatch.setattr(cutpaste, "paste_scar", lambda picture: torch.full_like(picture, 0.9))
    model, images = build("cutpaste", tiny_net), toy(2, False, 0)[0]
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    model.classifier = Given(logits)
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    by_hand = -sum(math.log(p[row, kind]) for row, kind in enumerate([0, 0, 1, 1, 2, 2])) / 6
    assert model.loss(images).item() == pytest.approx(by_hand, rel=1e-5)
    seen = model.classifier.seen
    assert torch.equal(seen[:2], images)
    shown = seen * torch.tensor(model.std).view(3, 1, 1) + torch.tensor(model.mean).view(3, 1, 1)
    assert shown[2:4].flatten().tolist() == pytest.approx([0.2] * shown[2:4].numel(), abs=1e-5)
    assert shown[4:].flatten().tolist() == pytest.approx([0.9] * shown[4:].numel(), abs=1e-5)


def test_cutpastes_density_is_mahalanobis_with_ledoit_and_wolfs_covariance() -> None:
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 3, 30)
    density = Density()
    density.fit(x)
    reference = LedoitWolf().fit(x.double().numpy())
    by_hand = [mahalanobis(row, reference.location_, reference.precision_) for row in x.numpy()]
    np.testing.assert_allclose(density(x), by_hand, rtol=1e-4)


def test_pretrained_stages_but_the_last_stay_as_they_are(tiny_net: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "tiny.pt"
    torch.save(pretrained(tiny_net, None).state_dict(), file)
    tuned = FineTuned(tiny_net, str(file), ways=4)
    assert tuned.network.prefix == ["stage1"]
    before = {name: value.clone() for name, value in tuned.network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], 0.1)
    tuned.train()(toy(4, False, 0)[0]).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in tuned.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("stage1.") for name in changed)
    assert {name.split(".")[0] for name in changed} == {"stage2", "head"}
    assert FineTuned(tiny_net, None, ways=4).network.prefix == []


def test_rotation_is_sure_of_nothing_where_turns_look_the_same() -> None:
    images = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    four, turns = turned(images)
    assert torch.equal(four[2], torch.from_numpy(np.rot90(images[0].numpy(), 1, (1, 2)).copy()))
    assert turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert uncertainty(torch.zeros(8, 4), turns).tolist() == pytest.approx([math.log(4)] * 2)
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    p = torch.softmax(logits, 1)
    by_hand = -sum(math.log(p[2 * k + 1, k]) for k in range(4)) / 4
    assert uncertainty(logits, turns)[1].item() == pytest.approx(by_hand, rel=1e-5)
    sure = torch.where(F.one_hot(turns, 4) > 0, 20.0, 0.0)
    assert uncertainty(sure, turns).tolist() == pytest.approx([math.log1p(3 * math.exp(-20))] * 2, rel=1e-5, abs=0)


def test_deep_svdd_whitens_and_keeps_its_centre_from_zero() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 12) @ torch.randn(12, 12) + 3
    x[:, 0] = 5  # a channel that says nothing
    sphere = Sphere(12, 12)
    sphere.fit(x)
    white = (x - sphere.mean) @ sphere.axes.T
    torch.testing.assert_close(white[:, :11].T.cov(), torch.eye(11), atol=1e-3, rtol=0)
    assert white[:, 11].abs().max() == 0
    assert sphere.centre.abs().min() >= 0.1 - 1e-6
    by_hand = (sphere.network(white) - sphere.centre).square().sum(1)
    torch.testing.assert_close(sphere(x), by_hand)
    assert not [name for name, _ in sphere.named_parameters() if name.endswith("bias")]


def test_deep_svdd_draws_good_images_together(fitted: Callable[[str], AnomalyModel], tiny_net: str) -> None:
    images = toy(32, False, 1)[0]
    torch.manual_seed(0)
    untrained = build("deep_svdd", tiny_net)
    untrained.prepare(lambda: [images])
    trained = fitted("deep_svdd")  # before: it may have to train first
    with torch.no_grad():
        assert trained.loss(images) < 0.7 * untrained.loss(images)


def test_deep_svdd_has_no_more_dimensions_than_channels(tiny_net: str) -> None:
    with pytest.raises(LabError, match=r"model.options.dimensions=25 is out of range: these layers have 24 channels"):
        build("deep_svdd", tiny_net, dimensions=25)


def test_perlin_noise_is_zero_on_its_grid_and_smooth_between() -> None:
    torch.manual_seed(0)
    noise = perlin(64, 4, 8)
    assert noise[::16, ::8].abs().max() < 1e-6
    assert noise.abs().max() <= 1
    assert noise.std() > 0.1
    steps = max(noise.diff(dim=0).abs().max(), noise.diff(dim=1).abs().max())
    assert steps < 0.5  # white noise of this width has steps of its whole range


def test_draem_corrupts_within_masks_alone_and_spares_half() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(32, 3, 48, 48)
    before = pictures.clone()
    draws = [corrupt(pictures) for _ in range(8)]
    corrupted, masks = (torch.cat(parts) for parts in zip(*draws, strict=True))
    assert torch.equal(pictures, before)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    changed = (corrupted != pictures.repeat(8, 1, 1, 1)).any(1, keepdim=True)
    assert not (changed & (masks == 0)).any()
    assert (changed & (masks == 1)).sum() > 0.9 * masks.sum()
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1
    assert 0.2 < (masks.amax((1, 2, 3)) > 0).float().mean() < 0.6  # some of the noise never passes the threshold


def test_draems_loss_and_score_are_the_papers() -> None:
    torch.manual_seed(0)
    pictures, mask = torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) > 0.8).float()
    logits = torch.randn(2, 1, 32, 32)
    p = torch.where(mask > 0, logits.sigmoid(), 1 - logits.sigmoid())
    focal = (-((1 - p) ** 2) * p.log()).mean()
    assert draem_loss(pictures, mask, pictures, logits).item() == pytest.approx(focal.item(), rel=1e-4)
    restored, pictures = torch.full((2, 3, 32, 32), 0.7), torch.full((2, 3, 32, 32), 0.5)
    similar = (2 * 0.7 * 0.5 + 1e-4) / (0.7**2 + 0.5**2 + 1e-4)  # nothing varies in either
    by_hand = 0.2**2 + 1 - similar + 0.5**2 * math.log(2)  # of logits 0
    assert draem_loss(pictures, mask, restored, torch.zeros_like(mask)).item() == pytest.approx(by_hand, rel=1e-4)
    maps = torch.zeros(1, 64, 64)
    maps[0, 30:33, 40:43] = 1
    assert image_score(maps).item() == pytest.approx(9 / 25)  # 64 * 21 / 256 is 5 pixels
    assert DraemNetwork()(torch.rand(1, 3, 33, 33))[1].shape == (1, 1, 33, 33)
