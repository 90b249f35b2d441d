"""Generate embeddings of rare classes: an adaptation of the data augmentation classifier (Jiang & Ge, IEEE TASE 2020).

As there, a conditional generator draws data of the rare classes, which are filtered and purified before a classifier
trains on them. The differences:

- the data are a frozen backbone's embeddings of images, not process variables;
- the generator is a conditional VAE (Sohn et al., NeurIPS 2015): a few dozen images cannot train a discriminator;
- it learns how a class's images vary around their mean and shares that among classes, so that one image makes a class;
- the rules of filtering and purification are this module's own, for classes of about ten images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from mvtec_lab.errors import LabError

COMPONENTS = 64  # principal ones: nine tenths of the variance of two hundred embeddings
# Of held-out images of MVTec's bottle the bound is best here; wider layers or more steps learn images by heart.
LATENT, HIDDEN, STEPS = 8, 64, 100
RATE = 3e-3  # Adam's
ROUNDS = 20  # of generating what still lacks: a class of which a fifth survives is full by then, to a hundredth
ODDS = 2.0  # of a generated embedding's class against any other
TINY = 1e-12  # to divide by where nothing varies


@dataclass(frozen=True)
class Generated:
    """Hold embeddings that were generated for the rare of C classes, and the counts by class, [C] each.

    Of those that were drawn, some were ``filtered`` out, some ``purified`` away, and the others kept.
    """

    embeddings: Tensor  # [G, D]
    labels: Tensor  # [G]
    images: int  # the real ones that they were learnt from
    drawn: tuple[int, ...]
    filtered: tuple[int, ...]
    purified: tuple[int, ...]
    kept: tuple[int, ...]

    def join(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch with its share of these, drawn from torch's global generator: all of them in about an epoch.

        Args:
            features: of the batch, [N, D].
            labels: its classes, [N].
        """
        if not len(self.labels):
            return features, labels
        share = len(labels) * len(self.labels) / self.images
        # Rounded up or down at random: a small share would otherwise always be 0.
        places = torch.randint(len(self.labels), (int(share + torch.rand(())),))
        features = torch.cat([features, self.embeddings[places].to(features)])
        return features, torch.cat([labels, self.labels[places].to(labels)])

    def summary(self, classes: Sequence[str]) -> str:
        """Return in one line how many embeddings of each class were generated."""
        counts = zip(classes, self.drawn, self.filtered, self.purified, self.kept, strict=True)
        parts = [f"{name} {kept} ({n} less {f} filtered, {p} purified)" for name, n, f, p, kept in counts if n]
        return f"features generated: {', '.join(parts) or 'none, all classes are as frequent'}"


class ConditionalGenerator(nn.Module):
    """Model embeddings with a conditional VAE, in double precision on the CPU.

    It works on the leading principal components of standardised embeddings. The decoder takes the class as its mean
    and gives an image's offset from it, with Gaussian noise of a learnt width for each component; if the latent code
    carries nothing, only that noise around the class's mean remains.

    Args:
        features: D.
        num_classes: C.
    """

    mean: Tensor
    scale: Tensor
    axes: Tensor
    spread: Tensor
    centres: Tensor
    conditions: Tensor
    counts: Tensor

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        k = min(COMPONENTS, features)
        self.encoder = nn.Sequential(nn.Linear(2 * k, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT + k, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, k))
        self.log_noise = nn.Parameter(torch.zeros(k))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("axes", torch.zeros(k, features))
        self.register_buffer("spread", torch.ones(k))
        self.register_buffer("centres", torch.zeros(num_classes, k))
        self.register_buffer("conditions", torch.zeros(num_classes, k))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))
        self.floor = -torch.inf
        self.double()

    def project(self, embeddings: Tensor) -> Tensor:
        """Return the components [N, K] of embeddings [N, D]: their distances are those of standardised embeddings."""
        return (embeddings.cpu().double() - self.mean) / self.scale @ self.axes.T

    def fit(self, embeddings: Tensor, labels: Tensor, seed: int) -> ConditionalGenerator:
        """Learn from embeddings [M, D] and their labels [M]; the global random state is neither used nor changed.

        Raises:
            LabError: no class has two images, so that nothing shows how images of a class vary.
        """
        x, y = embeddings.detach().cpu().double(), labels.cpu()
        self.counts = torch.bincount(y, minlength=len(self.counts))
        if self.counts.max() < 2:
            raise LabError("no class has two training images to learn from: add images, or give model.generate=false")
        self.floor = 0.0 if (x >= 0).all() else -torch.inf
        self.mean, self.scale = x.mean(0), x.std(0)
        self.scale[x.amax(0) == x.amin(0)] = 1
        k = min(*x.shape, len(self.axes))
        _, _, axes = randomized_svd(((x - self.mean) / self.scale).numpy(), k, random_state=seed)
        self.axes.zero_()[:k] = torch.from_numpy(axes)
        components = self.project(x)
        n = self.counts.double()
        self.centres = torch.zeros_like(self.centres).index_add(0, y, components) / n.clamp(min=1)[:, None]
        self.conditions = self.centres / components.std().clamp(min=TINY)  # one factor keeps classes' distances

        # An image that is its class's mean shows no variation. In small classes offsets from the mean come out too
        # short, by the factor that Bessel's correction makes up for.
        several = n[y] > 1
        y = y[several]
        offsets = (components[several] - self.centres[y]) * (n / (n - 1))[y, None].sqrt()
        # A compromise: good's many images must not decide alone how defects vary, nor two images as much as all those.
        weights = n[y] ** -0.5
        weights = weights / weights.sum()
        self.spread = (weights @ offsets.square()).sqrt().clamp(min=TINY)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for the GPUs' as well
            self._train(offsets / self.spread, self.conditions[y], weights)
        return self

    def _train(self, offsets: Tensor, conditions: Tensor, weights: Tensor) -> None:
        for part in (*self.encoder, *self.decoder):
            if isinstance(part, nn.Linear):
                part.reset_parameters()
        nn.init.zeros_(self.log_noise)
        optimizer = torch.optim.Adam(self.parameters(), lr=RATE)
        for _ in range(STEPS):
            mu, log_var = self.encoder(torch.cat([offsets, conditions], 1)).chunk(2, dim=1)
            code = mu + torch.randn_like(mu) * (log_var / 2).exp()
            errors = self._decode(code, conditions) - offsets
            misfit = (self.log_noise + errors.square() / (2 * (2 * self.log_noise).exp())).sum(1)
            divergence = (mu.square() + log_var.exp() - log_var - 1).sum(1) / 2
            loss = weights @ (misfit + divergence)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _decode(self, codes: Tensor, conditions: Tensor) -> Tensor:
        """Return offsets [N, K] from the class's mean: 0 for code 0, or a class of one image would drift away."""
        both = torch.stack([codes, torch.zeros_like(codes)])
        there, origin = self.decoder(torch.cat([both, conditions.expand(2, *conditions.shape)], dim=2))
        return there - origin

    @torch.no_grad()
    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Return new embeddings [count, D] of a class, non-negative where those that it learnt from are.

        Raises:
            LabError: the class had no image to learn from.
        """
        if not self.counts[label]:
            raise LabError(
                f"class {label} has no training image to make others from: put one of its images into the training "
                "split, or give model.generate=false"
            )
        condition = self.conditions[label].expand(count, -1)
        code = torch.randn(count, LATENT, generator=generator, dtype=torch.float64)
        noise = torch.randn(condition.shape, generator=generator, dtype=torch.float64) * self.log_noise.exp()
        offsets = (self._decode(code, condition) + noise) * self.spread
        return ((self.centres[label] + offsets) @ self.axes * self.scale + self.mean).clamp(min=self.floor)


def keep_confident(drawn: np.ndarray, labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray) -> np.ndarray:
    """Return which generated embeddings [N, K] a classifier trained on the real ones predicts as their class: bool [N].

    Its odds must be ``ODDS`` or more against every other class. A least probability would be harder to reach, the more
    classes share it.
    """
    classifier = LogisticRegression(class_weight="balanced", max_iter=1000)
    unit = real.std(axis=0).max() or 1.0  # one for all, so that the penalty bears least on the widest components
    classifier.fit(real / unit, real_labels)
    probabilities = classifier.predict_proba(drawn / unit)
    own = classifier.classes_ == labels[:, None]
    return (probabilities * own).max(axis=1) >= ODDS * (probabilities * ~own).max(axis=1)


def keep_near(drawn: np.ndarray, labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray) -> np.ndarray:
    """Return which generated embeddings [N, K] lie among the real ones of their class: bool [N].

    The nearest real one must be of their class, and no farther than the largest distance of one of that class from its
    nearest neighbour in it: a new image of a class of n has a chance of about 1 in n + 1 to be farther. A class without
    such a distance takes the median of the other classes': pooling images would let good's hundreds speak alone.
    """
    reach = np.zeros(max(labels.max(), real_labels.max()) + 1)
    for label, count in zip(*np.unique(real_labels, return_counts=True), strict=True):
        if count > 1:
            within = NearestNeighbors(n_neighbors=1).fit(real[real_labels == label])
            reach[label] = within.kneighbors()[0].max()
    if reach.any():
        reach[reach == 0] = np.median(reach[reach > 0])
    distances, nearest = NearestNeighbors(n_neighbors=1).fit(real).kneighbors(drawn)
    return (real_labels[nearest[:, 0]] == labels) & (distances[:, 0] <= reach[labels])


@torch.inference_mode(False)  # fitting needs gradients, whatever mode the caller is in
def balance(embeddings: Tensor, labels: Tensor, num_classes: int, seed: int) -> Generated:
    """Generate embeddings until every class has as many as the most frequent one, or ``ROUNDS`` are over.

    Equal embeddings [M, D], labels [M] and seed give an equal result. The global random states are neither used nor
    changed.

    Raises:
        LabError: a class has no image, or classes differ in size and none has two images.
    """
    embeddings, real_labels = embeddings.detach(), labels.cpu().numpy()
    present = np.bincount(real_labels, minlength=num_classes)
    total, filtered, purified, kept = (np.zeros(num_classes, dtype=int) for _ in range(4))
    new, new_labels = [embeddings[:0].cpu().double()], [real_labels[:0]]
    if present.min() < present.max():
        with torch.random.fork_rng(devices=[]):
            model = ConditionalGenerator(embeddings.shape[1], num_classes)
        model.fit(embeddings, labels, seed)
        real = model.project(embeddings).numpy()
        generator = torch.Generator().manual_seed(seed)
        for _ in range(ROUNDS):
            lacking = present.max() - present - kept
            if not lacking.any():
                break
            drawn = torch.cat([model.sample(label, int(n), generator) for label, n in enumerate(lacking) if n])
            of = np.repeat(np.arange(num_classes), lacking)
            components = model.project(drawn).numpy()
            confident = keep_confident(components, of, real, real_labels)
            pure = keep_near(components, of, real, real_labels)
            for count, chosen in ((total, slice(None)), (filtered, ~confident), (purified, confident & ~pure)):
                count += np.bincount(of[chosen], minlength=num_classes)
            kept = total - filtered - purified
            new.append(drawn[confident & pure])
            new_labels.append(of[confident & pure])
    counts = [tuple(count.tolist()) for count in (total, filtered, purified, kept)]
    of_new = torch.from_numpy(np.concatenate(new_labels)).to(labels)
    return Generated(torch.cat(new).to(embeddings), of_new, len(labels), *counts)
