"""The one-class methods over frozen features: what they find in tiny images, and their formulas against others'."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ONE_CLASS_METHODS
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.svm import OneClassSVM
from torch import Tensor, nn
from torchvision.models._api import BUILTIN_MODELS
from torchvision.ops import Permute

from mvtec_lab.errors import LabError
from mvtec_lab.models import maps as maps_module
from mvtec_lab.models.maps import FeatureMaps
from mvtec_lab.problems import METHODS, memory
from mvtec_lab.problems.anomaly import frozen
from mvtec_lab.problems.anomaly.base import AnomalyModel, of_map
from mvtec_lab.problems.anomaly.methods.gaussian.model import FeatureGaussian
from mvtec_lab.problems.anomaly.methods.kmeans.model import CentreDistance
from mvtec_lab.problems.anomaly.methods.nearest.model import NeighbourDistance
from mvtec_lab.problems.anomaly.methods.ocsvm.model import NU, SupportVectors
from mvtec_lab.problems.anomaly.methods.padim.model import RIDGE, PlaceGaussians
from mvtec_lab.problems.anomaly.methods.patchcore import model as patchcore
from mvtec_lab.problems.anomaly.methods.rad.model import PlaceMemory
from mvtec_lab.problems.anomaly.methods.spade.model import Gallery
from mvtec_lab.problems.anomaly.models import build_anomaly_model

LOCALISING = ("patchcore", "padim", "spade", "rad")
FITTED_ONCE = (*LOCALISING, "nearest", "kmeans", "gaussian", "ocsvm")
DRAWS_NOTHING = ("patchcore", "spade", "rad", "nearest", "gaussian", "ocsvm")
SKEWED = torch.randn(60, 20, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 20) + 4
SIDE = 48
SPOT = (slice(20, 30), slice(30, 40))  # rows, columns of the defect


def images(count: int, defect: bool = False, seed: int = 0) -> Tensor:
    """Noise around a grey, and a spot of another colour in the defect ones."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, SIDE, SIDE, generator=generator) * 0.1
    if defect:
        noise[(slice(None), 0, *SPOT)] += 3
    return noise


def unfitted(name: str, net: str, seed: int = 0, **options: object) -> AnomalyModel:
    torch.manual_seed(seed)
    layers = ["features.relu1", "features.relu2"]
    return build_anomaly_model(name, backbone=net, weights=None, **{"layers": layers, **options}).eval()


def fitted(name: str, net: str, count: int = 12, **options: object) -> AnomalyModel:
    method = unfitted(name, net, **options)
    method.prepare(lambda: images(count).split(5))
    return method


@pytest.mark.parametrize("name", FITTED_ONCE)
def test_a_method_finds_a_spot_and_is_restored_exactly(name: str, tiny_net: str) -> None:
    method = fitted(name, tiny_net)
    good, bad = method(images(6, seed=1)), method(images(6, defect=True, seed=2))
    assert good.image.shape == (6,)
    assert good.image.dtype == torch.float32
    assert good.image.max() < bad.image.min()
    if name in LOCALISING:
        assert bad.map is not None
        peaks = torch.nn.functional.interpolate(bad.map[:, None], (SIDE, SIDE), mode="bilinear").flatten(1).argmax(1)
        rows, columns = peaks // SIDE, peaks % SIDE
        assert ((rows >= 18) & (rows < 32) & (columns >= 28) & (columns < 42)).all()
    else:
        assert bad.map is None
    again = fitted(name, tiny_net)
    torch.manual_seed(9)
    restored = type(method)(**method.hparams).eval()  # of another seed
    restored.load_state_dict(method.state_dict())
    for other in (again, restored):
        assert torch.equal(other(images(6, defect=True, seed=2)).image, bad.image)


@pytest.mark.parametrize("name", FITTED_ONCE)
def test_two_seeds_give_equal_scores_where_a_method_draws_nothing(name: str, tiny_net: str) -> None:
    options = {"dimensions": 5} if name == "padim" else {"clusters": 15} if name == "kmeans" else {}
    scores, network = [], unfitted(name, tiny_net).features.state_dict()
    for seed in range(4):
        method = unfitted(name, tiny_net, seed, **options)
        method.features.load_state_dict(network)  # pretrained weights are the same for all seeds
        method.prepare(lambda: images(40).split(10))
        scores.append(method(images(4, defect=True, seed=2)).image)
    assert method.method.draws != all(torch.equal(image, scores[0]) for image in scores)
    assert method.method.draws == (name not in DRAWS_NOTHING)


def test_what_trains_draws() -> None:
    for name in ONE_CLASS_METHODS:
        assert METHODS[name].draws or not METHODS[name].trains
        assert METHODS[name].draws == (name not in DRAWS_NOTHING)


@pytest.mark.parametrize("name", FITTED_ONCE)
def test_any_batches_and_any_batch_give_the_same_scores(name: str, tiny_net: str) -> None:
    method, other = fitted(name, tiny_net), unfitted(name, tiny_net)
    other.prepare(lambda: iter([images(12)]))  # one batch, of unknown number
    test = images(4, defect=True, seed=3)
    torch.testing.assert_close(other(test).image, method(test).image, rtol=1e-3, atol=1e-4)
    one_by_one = torch.cat([method(image[None]).image for image in test])
    torch.testing.assert_close(one_by_one, method(test).image, rtol=1e-4, atol=1e-4)


def test_maps_are_the_same_in_parts_and_exported_for_any_batch(tiny_net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = FeatureMaps(tiny_net, None, ["features.relu1", "features.relu2"])
    whole = maps(images(5))
    monkeypatch.setattr(maps_module, "PART", 2 * SIDE**2)
    exported = torch.export.export(maps, (images(2),), dynamic_shapes=({0: torch.export.Dim("N")},)).module()
    sizes: list[int] = []
    maps.network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    parts = maps(images(5))
    assert sizes == [2, 2, 1]
    for a, b, c in zip(whole, parts, exported(images(5)), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        assert torch.allclose(a, c, atol=1e-6)


class Mixed(nn.Module):
    """Its maps of 224 pixels have 28 rows; ``wide`` ones as many channels, and but for the first these come last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 28, 8, stride=8)
        self.narrow = nn.Sequential(nn.Conv2d(28, 8, 1), Permute([0, 2, 3, 1]))
        self.wide = nn.Linear(8, 28)
        self.tokens = nn.Sequential(nn.Flatten(1, 2), nn.Unflatten(1, (4, -1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.wide(self.narrow(self.first(images))))


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(BUILTIN_MODELS, "mixed_lab_net", lambda **_: Mixed())
    return "mixed_lab_net"


@pytest.mark.parametrize("layer", ["narrow", "wide"])
def test_maps_with_channels_last_are_one_line(layer: str, mixed: str) -> None:
    assert FeatureMaps(mixed, None, ["first"]).channels == [28]
    with pytest.raises(LabError, match=rf"layer {layer} of {mixed} has its channels last, \[1, 28, 28"):
        FeatureMaps(mixed, None, ["first", layer])


def test_what_is_not_square_of_a_square_image_is_no_map(mixed: str) -> None:
    with pytest.raises(LabError, match=f"layer tokens of {mixed} gives no map of the image"):
        FeatureMaps(mixed, None, ["first", "tokens"])


@pytest.mark.parametrize("layers", [["first", "first"], ["first", "narrow", "narrow.1"]])
def test_a_layer_named_twice_is_one_line(layers: list[str], mixed: str) -> None:
    with pytest.raises(LabError, match=f"names a layer of {mixed} twice: give {', '.join(layers[:-1])}$"):
        FeatureMaps(mixed, None, layers)


@pytest.mark.parametrize("name", FITTED_ONCE)
def test_constant_images_give_finite_scores(name: str, tiny_net: str) -> None:
    method = unfitted(name, tiny_net)
    method.prepare(lambda: torch.ones(8, 3, SIDE, SIDE).split(3))
    same, bad = method(torch.ones(3, 3, SIDE, SIDE)), method(images(3, defect=True))
    assert same.image.isfinite().all()
    assert bad.image.isfinite().all()
    assert same.image.max() <= bad.image.min()


@pytest.mark.parametrize("name", FITTED_ONCE)
def test_no_images_is_one_line(name: str, tiny_net: str) -> None:
    with pytest.raises(LabError, match="good images"):
        unfitted(name, tiny_net).prepare(lambda: [])


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("patchcore", {"coreset": 0.0}, "model.options.coreset=0.0"),
        ("patchcore", {"coreset": 1.5}, "model.options.coreset=1.5"),
        ("padim", {"dimensions": 25}, "have 24 channels"),
        ("gaussian", {"dimensions": 24}, "have 24 channels"),
        ("ocsvm", {"dimensions": 25}, "have 24 channels"),
        ("ocsvm", {"dimensions": 0}, "model.options.dimensions=0 is out of range: give 1 or more"),
        ("kmeans", {"clusters": 0}, "model.options.clusters=0"),
        ("nearest", {"neighbours": 0}, "model.options.neighbours=0"),
        ("spade", {"neighbours": 0}, "model.options.neighbours=0"),
        ("rad", {"radius": -1}, "model.options.radius=-1 is out of range: give 0 to 10"),
        ("rad", {"patches": 0}, "model.options.patches=0 is out of range"),
        ("rad", {"score": "mean"}, "model.options.score"),
    ],
)
def test_an_option_out_of_range_is_one_line(name: str, options: dict[str, float], says: str, tiny_net: str) -> None:
    with pytest.raises(LabError, match=says):
        unfitted(name, tiny_net, **options)


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("padim", {}, 2),
        ("nearest", {}, 5),
        ("kmeans", {"clusters": 6}, 6),
        ("gaussian", {}, 2),
        ("gaussian", {"dimensions": 3}, 5),
        ("ocsvm", {}, 2),
    ],
)
def test_too_few_images_is_one_line(name: str, options: dict[str, int], needed: int, tiny_net: str) -> None:
    method = unfitted(name, tiny_net, **options)
    with pytest.raises(LabError, match=f"at least {needed} good images"):
        method.prepare(lambda: [images(needed - 1)])
    method.prepare(lambda: [images(needed)])
    assert method(images(2)).image.isfinite().all()


def test_spade_needs_two_layers(tiny_net: str) -> None:
    with pytest.raises(LabError, match="two or more"):
        unfitted("spade", tiny_net, layers=["features.relu1"])


@pytest.mark.parametrize("name", LOCALISING)
def test_more_than_the_memory_is_refused_ahead(
    name: str, tiny_net: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2_048))
    given = 0

    def batches() -> list[Tensor]:
        nonlocal given
        given += 1
        return list(images(12).split(5))

    with pytest.raises(LabError, match="GB are free"):
        unfitted(name, tiny_net).prepare(batches)
    assert given == 1


@pytest.mark.parametrize(("channels", "bytes_a_patch"), [(128, 4 * 128), (200, 4 * (200 + 128))])
def test_the_projection_counts_as_memory(channels: int, bytes_a_patch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[int] = []
    monkeypatch.setattr(patchcore, "require_memory", lambda count, *_: needed.append(count))
    bank = patchcore.PatchBank(channels, 0.1)
    bank.require_memory([torch.rand(2, channels, 4, 4)], images=6, device=torch.device("cpu"))
    assert needed == [6 * 16 * bytes_a_patch]


@pytest.mark.parametrize(("announced", "planned"), [(True, [15]), (False, [5, 20])])
def test_memory_is_planned_for_all_images_and_again_if_more_come(
    announced: bool, planned: list[int], tiny_net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, counts = unfitted("spade", tiny_net), []
    monkeypatch.setattr(method.model, "require_memory", lambda maps, count, device: counts.append(count))
    batches = [images(5), images(5), images(2)]
    method.prepare(lambda: batches if announced else (batch for batch in batches))
    assert counts == planned


def greedy(points: np.ndarray, count: int) -> list[int]:
    """The textbook's k-center: all distances, one new centre a step."""
    chosen = [int(cdist(points, points.mean(0, keepdims=True)).argmax())]
    while len(chosen) < count:
        chosen.append(int(cdist(points, points[chosen]).min(1).argmax()))
    return chosen


@pytest.mark.parametrize(("active", "block"), [(4096, 2**22), (20, 2**22), (1, 2**22), (20, 50)])
def test_the_lazy_coreset_is_the_greedy_one(active: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchcore, "ACTIVE", active)
    monkeypatch.setattr(patchcore, "BLOCK", block)
    points = torch.randn(300, 6, generator=torch.Generator().manual_seed(4)) ** 3
    assert patchcore.coreset(points, 60).tolist() == greedy(points.double().numpy(), 60)
    assert sorted(patchcore.coreset(points[:50], 50).tolist()) == list(range(50))


def test_a_coreset_of_equal_rows_repeats_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchcore, "ACTIVE", 7)
    assert len(set(patchcore.coreset(torch.full((40, 3), 0.3), 30).tolist())) == 30


def test_projection_keeps_distances() -> None:
    points = torch.randn(40, 2000, generator=torch.Generator().manual_seed(5))
    ratio = torch.pdist(patchcore.project(points)) / torch.pdist(points)
    assert patchcore.project(points).shape == (40, 128)
    assert 0.7 < ratio.min() < ratio.mean() < ratio.max() < 1.3
    assert torch.equal(patchcore.project(points[:, :128]), points[:, :128])


def test_the_bank_has_its_share_of_the_patches(tiny_net: str) -> None:
    patches = 12 * (SIDE // 2) ** 2
    assert len(fitted("patchcore", tiny_net).model.bank) == round(0.01 * patches)
    assert len(fitted("patchcore", tiny_net, coreset=1.0).model.bank) == patches
    assert len(fitted("patchcore", tiny_net, coreset=1e-6).model.bank) == patchcore.NEIGHBOURS


def test_a_bank_is_capped_with_a_remark(tiny_net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted("patchcore", tiny_net, coreset=0.5).remarks == []
    monkeypatch.setattr(patchcore, "LARGEST", 50)
    method = fitted("patchcore", tiny_net, coreset=0.5)
    assert len(method.model.bank) == 50
    assert method.remarks == ["model.options.coreset=0.5 asks for 3456 patches: the bank ends at 50"]


def test_a_patch_is_the_mean_of_its_neighbourhood_in_every_layer() -> None:
    generator = torch.Generator().manual_seed(3)
    fine, coarse = torch.randn(1, 2, 6, 6, generator=generator), torch.randn(1, 3, 3, 3, generator=generator)
    patches = patchcore.embed([fine, coarse]).view(6, 6, 5)
    means = [uniform_filter(layer[0].numpy(), (0, 3, 3), mode="constant") for layer in (fine, coarse)]  # zeros around
    assert np.allclose(patches[..., :2].permute(2, 0, 1), means[0], atol=1e-5)
    rows, columns = np.array([0.75, 0.25, 0]), np.array([0.25, 0.75, 0])  # row 1, column 2 of 6 between those of 3
    assert np.allclose(patches[1, 2, 2:], rows @ means[1] @ columns, atol=1e-5)


def test_the_reweighting_is_equation_7() -> None:
    generator = torch.Generator().manual_seed(6)
    bank, queries = torch.randn(50, 4, generator=generator), 2 * torch.randn(3, 4, generator=generator)
    own, places = (part[:, 0] for part in memory.nearest(queries, bank))
    scores = patchcore.reweighted(queries, bank, places)
    distances = cdist(queries, bank)
    for i, place in enumerate(places.tolist()):
        around = cdist(bank[[place]], bank)[0].argsort()[: patchcore.NEIGHBOURS]
        weight = 1 - np.exp(distances[i, place]) / np.exp(distances[i, around]).sum()
        assert place == distances[i].argmin()
        assert float(scores[i]) == pytest.approx(weight * float(own[i]), rel=1e-4)


def test_patchcores_score_is_equation_7_of_the_farthest_patch() -> None:
    generator = torch.Generator().manual_seed(6)
    model = patchcore.PatchBank(3, 1.0)
    model.bank = torch.randn(50, 3, generator=generator)
    maps = frozen.Maps([3 * torch.randn(4, 3, 5, 5, generator=generator)])
    distances = cdist(patchcore.embed(maps).flatten(0, 1), model.bank).reshape(4, 25, 50)
    scores = model(maps, 10).image
    for i, patches in enumerate(distances):
        own = patches.min(1).max()
        to_bank = patches[patches.min(1).argmax()]
        around = cdist(model.bank[[to_bank.argmin()]], model.bank)[0].argsort()[: patchcore.NEIGHBOURS]
        weight = 1 - np.exp(own) / np.exp(to_bank[around]).sum()
        assert weight < 0.95
        assert float(scores[i]) == pytest.approx(weight * own, rel=1e-4)


def test_smoothing_is_bilinear_then_gaussian() -> None:
    scores = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(8))
    large = torch.nn.functional.interpolate(scores[:, None], (56, 56), mode="bilinear")[:, 0]
    expected = np.stack([gaussian_filter(one, 1.0, mode="mirror", truncate=4.0) for one in large.numpy()])
    assert np.allclose(frozen.smooth(scores, 56), expected, atol=1e-5)  # 56 * 4 / 224 = 1 pixel


def test_padim_is_the_mahalanobis_distance_at_each_place() -> None:
    torch.manual_seed(0)
    model = PlaceGaussians(channels=6, dimensions=4)
    maps = [[torch.randn(n, 4, 4, 4) * 3 + 50, torch.randn(n, 2, 2, 2)] for n in (5, 6)]
    model.fit(maps)
    values = torch.cat([model.embed(layers) for layers in maps]).double().numpy()
    test = frozen.Maps([torch.randn(1, 4, 4, 4) * 3 + 50, torch.randn(1, 2, 2, 2)])
    expected = np.zeros(16)
    for place, query in enumerate(model.embed(test)[0].double().numpy()):
        covariance = np.cov(values[:, place], rowvar=False) + RIDGE * np.eye(4)
        expected[place] = mahalanobis(query, values[:, place].mean(0), np.linalg.inv(covariance))
    smoothed = frozen.smooth(torch.from_numpy(expected).float().view(1, 4, 4), 16)
    scores = model(test, 16)
    torch.testing.assert_close(scores.map, smoothed, rtol=1e-3, atol=1e-3)
    assert scores.image == scores.map.max()


def test_padim_draws_its_channels_by_the_seed() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(PlaceGaussians(channels=60, dimensions=20).drawn.tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(channels)) == 20 for channels in drawn)


def test_spade_compares_with_all_places_of_the_nearest_images() -> None:
    torch.manual_seed(0)
    model = Gallery(channels=3, features=2, neighbours=2)
    maps = [[torch.randn(n, 3, 4, 4), torch.randn(n, 2, 2, 2)] for n in (3, 4)]
    model.fit(maps)
    pooled = torch.cat([last.mean((2, 3)) for _, last in maps])
    fine = torch.cat([first for first, _ in maps])
    test = frozen.Maps([torch.randn(2, 3, 4, 4), torch.randn(2, 2, 2, 2)])
    scores = model(test, 16)
    distances = cdist(test[1].mean((2, 3)), pooled)
    expected = []
    for i, order in enumerate(distances.argsort(1)[:, :2]):
        assert float(scores.image[i]) == pytest.approx(distances[i, order].mean(), rel=1e-4)
        gallery = fine[order].permute(0, 2, 3, 1).reshape(-1, 3)
        expected.append(torch.from_numpy(cdist(test[0][i].flatten(1).T, gallery).min(1)).view(4, 4))
    torch.testing.assert_close(scores.map, frozen.smooth(torch.stack(expected).float(), 16), rtol=1e-4, atol=1e-4)


def test_rad_compares_with_good_patches_near_the_place_in_each_layer() -> None:
    torch.manual_seed(0)
    model = PlaceMemory([3, 2], radius=1, patches=50)
    batches = [frozen.Maps([5 * torch.randn(n, 3, 4, 4) + 9, torch.randn(n, 2, 2, 2)]) for n in (3, 4)]
    model.fit(batches)
    test = frozen.Maps([5 * torch.randn(2, 3, 4, 4) + 9, torch.randn(2, 2, 2, 2)])
    expected = torch.zeros(2, 16, 16)
    for layer in range(2):
        good = torch.cat([maps[layer] for maps in batches]).double()
        spread = (good - good.mean((0, 2, 3), keepdim=True)).square().sum(1).mean().sqrt()
        side = good.shape[-1]
        heat = torch.zeros(2, side, side)
        for image, row, column in np.ndindex(2, side, side):
            near = good[:, :, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            cell = test[layer][image, :, row, column].double()
            heat[image, row, column] = (near - cell.view(1, -1, 1, 1)).norm(dim=1).min() / spread
        expected += frozen.smooth(heat, 16) / 2
    scores = model(test, 16)
    torch.testing.assert_close(scores.map, expected, rtol=2e-3, atol=2e-3)  # the bank is kept in half precision
    assert torch.equal(scores.image, scores.map.flatten(1).topk(3).values.mean(1))  # 1% of 256


def test_rad_finds_what_is_elsewhere_in_good_images(tiny_net: str) -> None:
    """A bar at a place where no good image has one is new there, not to a bank of patches from anywhere."""
    good, moved = images(20), images(4, seed=1)
    good[:, 0, :, :8] += 3
    moved[:, 0, :, 24:32] += 3
    for images_with_bar in (good, moved):
        images_with_bar[:, :, :2] = images_with_bar[:, :, -2:] = 0
    ratios = {}
    for name in ("rad", "patchcore"):
        method = unfitted(name, tiny_net)
        method.prepare(lambda: good[:16].split(5))
        ratios[name] = float(method(moved).image.min() / method(good[16:]).image.max())
    assert ratios["rad"] > 2 * ratios["patchcore"]


def test_rad_keeps_some_patches_at_each_place_whatever_the_batches(tiny_net: str) -> None:
    banks = [bank.bank for bank in fitted("rad", tiny_net, patches=5).model.banks]
    assert [bank.shape for bank in banks] == [(24, 24, 5, 8), (12, 12, 5, 16)]
    assert {bank.dtype for bank in banks} == {torch.float16}
    assert fitted("rad", tiny_net).model.banks[0].bank.shape[2] == 12  # of 12 good images
    method = fitted("rad", tiny_net, patches=5)
    test = images(5, defect=True, seed=3)
    maps = frozen.Maps(method.features(test))
    whole = method.model(maps, SIDE)
    parts = [method.model(frozen.Maps([layer[i : i + 1] for layer in maps]), SIDE) for i in range(5)]
    assert torch.equal(torch.cat([part.image for part in parts]), whole.image)


def test_an_image_can_be_scored_by_its_map(tiny_net: str) -> None:
    test = images(4, defect=True, seed=3)
    for name in LOCALISING:
        own, highest, top = (fitted(name, tiny_net, score=score).scores(test) for score in (None, "max", "top"))
        assert own.map is not None
        assert torch.equal(own.image, fitted(name, tiny_net)(test).image)
        pixels = own.map.flatten(1).sort(descending=True).values
        assert torch.equal(highest.image, pixels[:, 0])
        torch.testing.assert_close(top.image, pixels[:, : round(0.01 * SIDE**2)].mean(1))
        for scores in (highest, top):
            assert torch.equal(scores.map, own.map)


def test_the_highest_hundredth_is_of_what_shows_the_image() -> None:
    maps = torch.zeros(2, 40, 40)
    maps[:, 10:30] = torch.rand(2, 20, 40, generator=torch.Generator().manual_seed(0))
    inside = torch.zeros(2, 80, 80, dtype=torch.bool)
    inside[0, 20:60] = inside[1] = True
    scores = of_map(maps, "top", inside)
    pixels = maps.flatten(1).sort(descending=True).values
    assert float(scores[0]) == pytest.approx(float(pixels[0, :8].mean()))  # of 800 cells
    assert float(scores[1]) == pytest.approx(float(pixels[1, :16].mean()))
    inside[0] = False
    inside[0, 20, 0] = True  # a single cell
    assert float(of_map(maps, "top", inside)[0]) == pytest.approx(float(pixels[0, 0]))
    assert torch.equal(of_map(maps, "max", inside), maps.amax((1, 2)))


def test_the_gaussian_is_ledoit_and_wolfs() -> None:
    values, queries = SKEWED[:12], SKEWED[12:]
    model = FeatureGaussian(20, dimensions=None)
    model.learn(values)
    expected = LedoitWolf().fit(values.double().numpy()).mahalanobis(queries.double().numpy()) ** 0.5
    assert np.allclose(model.score(queries), expected, rtol=1e-3)


def test_with_dimensions_the_gaussian_is_probabilistic_pca() -> None:
    values, queries = SKEWED, SKEWED[:5] * 2
    model = FeatureGaussian(20, dimensions=6)
    model.learn(values)
    pca = PCA(6).fit(values.double().numpy())
    centred = queries.double().numpy() - pca.mean_
    squares = np.einsum("ni,ij,nj->n", centred, pca.get_precision(), centred)  # of variances by n - 1
    assert np.allclose(model.score(queries) ** 2, squares * len(values) / (len(values) - 1), rtol=1e-3)


@pytest.mark.parametrize("dimensions", [None, 4])
def test_support_vectors_score_as_scikit_learn_does(dimensions: int | None) -> None:
    model = SupportVectors(20, dimensions)
    model.learn(SKEWED)
    points = (SKEWED - SKEWED.mean(0)).double().numpy()
    points = points if dimensions is None else PCA(dimensions).fit_transform(points)
    machine = OneClassSVM(nu=NU).fit(points)
    assert np.allclose(model.score(SKEWED), -machine.decision_function(points), atol=2e-3)
    assert (model.score(SKEWED) > 1e-3).float().mean() <= NU


def test_kmeans_measures_to_the_nearest_centre() -> None:
    torch.manual_seed(0)
    values = torch.cat([SKEWED[:10] * 0.01, SKEWED[:10] * 0.01 + 5])
    model = CentreDistance(20, clusters=2)
    model.learn(values)
    distances = cdist(values, torch.stack([values[:10].mean(0), values[10:].mean(0)])).min(1)
    assert np.allclose(model.score(values), distances, rtol=1e-3)


def test_nearest_is_the_mean_over_the_neighbours() -> None:
    model = NeighbourDistance(20, neighbours=3)
    model.learn(SKEWED[5:])
    expected = np.sort(cdist(SKEWED[:5], SKEWED[5:]), 1)[:, :3].mean(1)
    assert np.allclose(model.score(SKEWED[:5]), expected, rtol=1e-4)


def test_blocks_are_collected_whatever_their_number_is_said_to_be() -> None:
    blocks = [torch.arange(6.0).view(3, 2), torch.arange(4.0).view(2, 2), torch.ones(1, 2)]
    for count in (0, 1, 3, 5):
        assert torch.equal(frozen.collect(iter(blocks), count), torch.cat(blocks))
