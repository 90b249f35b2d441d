"""Methods that reconstruct, on pictures of stripes whose defect is a square where dark and bright are exchanged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import others_slow
from scipy.ndimage import gaussian_filter
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import IMAGENET_MEAN, IMAGENET_STD
from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.methods.autoencoder.model import dissimilarity
from mvtec_lab.problems.anomaly.methods.fanogan import model as fanogan
from mvtec_lab.problems.anomaly.methods.fanogan.model import KAPPA, GanNetwork
from mvtec_lab.problems.anomaly.methods.memae import model as memae
from mvtec_lab.problems.anomaly.methods.vae.model import GREY, divergence
from mvtec_lab.problems.anomaly.models import build_anomaly_model
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionModel

SIZE = 32
ALL = ("autoencoder", "vae", "memae", "fanogan")
MEAN, STD = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)


def pictures(count: int, seed: int, size: int = SIZE) -> Tensor:
    """Stripes of one width and any phase and brightness, [count, 3, size, size] in [0, 1]."""
    draw = torch.Generator().manual_seed(seed)
    phase, light = torch.rand(2, count, 1, 1, generator=draw)
    wave = torch.sin(2 * torch.pi * (torch.arange(size) / 16 + phase)) * 0.2 + 0.4 + 0.2 * light
    clean = wave[:, :, None, :].expand(count, 3, size, size)
    return (clean + 0.02 * torch.randn(clean.shape, generator=draw)).clamp(0, 1)


def corrupted(count: int, seed: int) -> Tensor:
    """Half a period ahead in rows and columns 8 to 19: no pixel by itself shows it."""
    images = pictures(count, seed)
    images[:, :, 8:20, 8:20] = images.roll(8, dims=3)[:, :, 8:20, 8:20]
    return images


def normalised(images: Tensor) -> Tensor:
    return (images - MEAN) / STD


def build(method: str, **settings: Any) -> ReconstructionModel:
    model = build_anomaly_model(method, **{"image_size": SIZE, **settings})
    assert isinstance(model, ReconstructionModel)
    return model


def fit(model: ReconstructionModel, epochs: int, good: Tensor | None = None) -> ReconstructionModel:
    images = normalised(pictures(32, seed=0) if good is None else good)
    batches = DataLoader([{"image": image} for image in images], batch_size=16)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, batches, batches)
    return model.eval()


@torch.no_grad()
def score(model: ReconstructionModel, images: Tensor) -> Scores:
    return model(normalised(images))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("autoencoder", {"lr": 3e-3}),
        pytest.param("autoencoder", {"lr": 3e-3, "reconstruction": "ssim"}, marks=pytest.mark.slow),
        pytest.param("vae", {"lr": 3e-3}, marks=pytest.mark.slow),
        pytest.param("memae", {"lr": 3e-3, "slots": 50}, marks=pytest.mark.slow),
        pytest.param("fanogan", {"lr": 1e-3, "latent": 8}, marks=pytest.mark.slow),
    ],
)
def test_a_defect_is_found_and_located(method: str, settings: dict[str, Any]) -> None:
    pl.seed_everything(0)
    model = fit(build(method, **settings), epochs=100 if method == "fanogan" else 30)
    good, bad = score(model, pictures(20, seed=1)), score(model, corrupted(20, seed=2))
    assert bad.map is not None
    assert bad.image.shape == (20,)
    assert bad.map.shape == (20, SIZE, SIZE)
    assert bad.image.dtype == bad.map.dtype == torch.float32
    assert roc_auc_score([0] * 20 + [1] * 20, torch.cat([good.image, bad.image])) > 0.9
    row, column = divmod(int(bad.map.mean(0).argmax()), SIZE)
    assert 6 <= row < 22
    assert 6 <= column < 22


@pytest.mark.parametrize("method", others_slow(ALL, "vae"))
def test_the_seed_decides_and_a_checkpoint_brings_the_scores_back(method: str) -> None:
    def trained(seed: int) -> ReconstructionModel:
        pl.seed_everything(seed)
        return fit(build(method, latent=8), epochs=4)

    first, images = trained(0), corrupted(3, seed=3)
    again = build(**{"method": method, **first.hparams}).eval()
    assert not torch.equal(score(again, images).image, score(first, images).image)
    again.load_state_dict(first.state_dict())
    for other in (again, trained(0)):
        for value, expected in zip(score(other, images), score(first, images), strict=True):
            assert torch.equal(value, expected)
    assert not torch.equal(score(trained(1), images).image, score(first, images).image)
    one_by_one = torch.cat([score(first, one[None]).image for one in images])
    torch.testing.assert_close(one_by_one, score(first, images).image)


@pytest.mark.parametrize("method", ALL)
def test_pictures_of_one_colour_give_finite_scores(method: str) -> None:
    model = fit(build(method), epochs=2, good=torch.zeros(4, 3, SIZE, SIZE))
    scores = score(model, torch.ones(2, 3, SIZE, SIZE))
    assert all(values.isfinite().all() for values in scores if values is not None)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("size", [16, 40, 100])
def test_a_size_that_does_not_fit_is_refused(method: str, size: int) -> None:
    with pytest.raises(LabError, match=f"data.image_size={size} .*multiple of 16 from 32"):
        build(method, image_size=size)


@pytest.mark.parametrize(("method", "option", "value"), [*((m, "latent", 0) for m in ALL), ("memae", "slots", 1)])
def test_a_size_of_nothing_is_refused(method: str, option: str, value: int) -> None:
    with pytest.raises(LabError, match=f"model.options.{option}={value} is out of range: give {value + 1} to 100000"):
        build(method, **{option: value})


def test_an_unknown_reconstruction_is_refused() -> None:
    with pytest.raises(LabError, match=r"unknown model.options.reconstruction 'l1'.* l2, ssim"):
        build("autoencoder", reconstruction="l1")


@pytest.mark.parametrize("method", ALL)
def test_other_sizes_and_codes(method: str) -> None:
    model = build(method, image_size=64, latent=5).eval()
    scores = score(model, pictures(2, seed=0, size=64))
    assert scores.map is not None
    assert scores.map.shape == (2, 64, 64)


def test_ssim_as_numpy_has_it() -> None:
    a, b = pictures(1, seed=0)[0].double().numpy(), pictures(1, seed=1)[0].double().numpy()

    def window(x: np.ndarray) -> np.ndarray:
        return np.stack([gaussian_filter(channel, 1.5, truncate=3.5, mode="mirror") for channel in x])

    mean_a, mean_b = window(a), window(b)
    var_a, var_b, both = window(a * a) - mean_a**2, window(b * b) - mean_b**2, window(a * b) - mean_a * mean_b
    similar = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    similar /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    dissimilar = dissimilarity(torch.from_numpy(a)[None].float(), torch.from_numpy(b)[None].float())[0]
    np.testing.assert_allclose(dissimilar.numpy(), 1 - similar.mean(0), atol=1e-4)


def test_the_autoencoder_of_ssim_learns_and_scores_by_dissimilarity() -> None:
    model, images = build("autoencoder", reconstruction="ssim").eval(), corrupted(2, seed=0)
    expected = dissimilarity(model.network.layers(images), images)
    torch.testing.assert_close(model.network.residual(images), expected)
    torch.testing.assert_close(model.loss(normalised(images)), expected.mean())


def reconstructs_grey(decoder: nn.Module) -> None:
    """Whose last transposed convolution is before a sigmoid."""
    last = [layer for layer in decoder.modules() if isinstance(layer, nn.ConvTranspose2d)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def test_the_variational_loss_by_hand() -> None:
    model = build("vae", latent=4).eval()
    reconstructs_grey(model.network.decoder)
    code = model.network.encoder[-1]
    nn.init.zeros_(code.weight)
    code.bias.data.copy_(torch.tensor([2.0] * 4 + [1.0] * 4))  # means, logarithms of variances
    loss = model.loss(normalised(torch.full((2, 3, SIZE, SIZE), 0.6)))
    expected = math.log(0.1**2 + GREY) / 2 + 4 * (2**2 + math.e - 1 - 1) / 2 / (3 * SIZE**2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


class Undecided(nn.Module):
    """A memory of four slots that all weigh the same."""

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        return queries, torch.full((len(queries), 4), 0.25)


def test_memaes_loss_and_score_by_hand() -> None:
    model, images = build("memae"), corrupted(2, seed=0)
    model.network.memory = Undecided()
    reconstructs_grey(model.network.decoder)
    loss = model.loss(normalised(torch.full((2, 3, SIZE, SIZE), 0.6)))
    assert loss.item() == pytest.approx(0.1**2 + 2e-4 * math.log(4), rel=1e-5)
    scores = score(model.eval(), images)
    assert scores.map is not None
    torch.testing.assert_close(scores.image, scores.map.mean((1, 2)))


def test_the_divergence_as_torch_has_it() -> None:
    mean, log_variance = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)


def test_the_code_is_drawn_in_training_alone() -> None:
    model, images = build("vae"), normalised(pictures(2, seed=0))
    assert model.loss(images) != model.loss(images)
    model.eval()
    assert model.loss(images) == model.loss(images)


def test_the_memory_as_numpy_has_it() -> None:
    torch.manual_seed(0)
    memory, queries = memae.Memory(slots=12, channels=4), torch.randn(6, 4)
    mixtures, weights = memory(queries)
    slots, q = memory.slots.detach().numpy(), queries.numpy()
    cosines = q @ slots.T / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(slots, axis=1)
    kept = softmax(cosines, axis=1)
    kept[kept <= 1 / 12] = 0
    kept /= kept.sum(1, keepdims=True)
    assert (kept == 0).any()
    np.testing.assert_allclose(weights.detach().numpy(), kept, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(mixtures.detach().numpy(), kept @ slots, rtol=1e-4, atol=1e-6)
    assert memae.entropy(weights).item() == pytest.approx(entropy(kept, axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize("method", ["memae", "fanogan"])
def test_batch_statistics_end_as_those_of_the_last_weights(method: str) -> None:
    model = fit(build(method, latent=8), epochs=2)
    good = normalised(pictures(16, seed=0))
    model.finish(lambda: [good])
    seen = model.pictures(good) if method == "memae" else 2 * model.pictures(good) - 1
    first, norm = model.network.encoder[0][:2]
    torch.testing.assert_close(norm.running_mean, first(seen).mean((0, 2, 3)))
    assert not model.network.training


def test_the_critic_of_one_line_has_a_known_loss() -> None:
    network = GanNetwork(SIZE, latent=4)
    inputs = 3 * SIZE**2
    network.features, network.verdict = nn.Sequential(nn.Flatten()), nn.Linear(inputs, 1)
    nn.init.constant_(network.verdict.weight, 3 / inputs**0.5)  # the gradient is 3 long everywhere
    nn.init.zeros_(network.generator[0][-1][-1].weight)
    nn.init.zeros_(network.generator[0][-1][-1].bias)
    grey, white = torch.full((2, 3, SIZE, SIZE), 0.5), torch.ones(2, 3, SIZE, SIZE)
    assert network.critic_loss(grey).item() == pytest.approx(10 * (3 - 1) ** 2, rel=1e-4)
    assert network.critic_loss(white).item() == pytest.approx(40 - 3 * inputs**0.5, rel=1e-4)
    assert network.generator_loss(grey).item() == pytest.approx(-network.verdict.bias.item(), rel=1e-4)
    distance, residual = network.distance(white)  # of 1 in [-1, 1], in pixels and in features
    assert distance.tolist() == pytest.approx([1 + KAPPA] * 2)
    assert (residual == 1).all()


class Changes(pl.Callback):
    """What of f-AnoGAN's state each epoch has changed."""

    def __init__(self) -> None:
        self.epochs: list[set[str]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        after = pl_module.state_dict()
        self.epochs.append({name for name, value in self.before.items() if not torch.equal(value, after[name])})


def test_fanogan_trains_critic_and_generator_first_then_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanogan, "CRITIC_STEPS", 3)  # an epoch has two batches: its first turn is in the second
    model, changes = build("fanogan"), Changes()
    monkeypatch.setattr(model, "configure_callbacks", lambda: [changes])
    fit(model, epochs=4)
    trained = [{name.split(".")[1] for name in names if name.endswith(("weight", "bias"))} for names in changes.epochs]
    critic = {"features", "verdict"}
    assert trained == [critic, {*critic, "generator"}, {*critic, "generator"}, {"encoder"}]
    assert all(name.startswith("network.encoder") for name in changes.epochs[-1])  # running statistics as well
    optimizers = model.configure_optimizers()
    assert isinstance(optimizers, list)
    assert [o.param_groups[0]["betas"] for o in optimizers] == [(0.0, 0.9), (0.0, 0.9), (0.9, 0.999)]


def test_fanogan_needs_an_epoch_for_the_encoder() -> None:
    with pytest.raises(LabError, match=r"trainer.max_epochs=1 .*give 2 or more"):
        fit(build("fanogan"), epochs=1)


@pytest.mark.parametrize("method", ["autoencoder", "fanogan"])  # fanogan has a training step of its own
def test_a_training_that_diverges_stops_and_says_so(method: str) -> None:
    model = build(method, latent=8)
    with pytest.raises(LabError, match=r"its loss is nan: lower optimizer\.lr"):
        fit(model, epochs=2, good=torch.full((4, 3, SIZE, SIZE), torch.nan))
