"""Measure how well anomaly scores separate defects from good images, and anomaly maps defective from sound pixels.

A higher score means less like good; a score *above* a threshold is called a defect. An image's kind is "good" or its
defect type.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.metrics import classification_metrics
from mvtec_lab.evaluation.statistics import RESAMPLES, mann_whitney_interval, wilson_interval
from mvtec_lab.results import GOOD, write_whole

PRO_LIMIT = 0.3  # of the false-positive rate: the MVTec authors', Bergmann et al., IJCV 129, 2021
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_aupro")
BINS = 2048  # the error of pixel metrics of real maps is then 1e-5; with half as many bins, 3e-5
SAMPLE = 128  # rows and columns of a map that choose the bins: 1,000 maps then take some 150 MiB
# SAMPLE sees a few cells of a tiny defect in a map of more than LARGE: its HIGHEST cells choose BINS / 2 further bins.
# Pixel AP of defects of 30 pixels in 4000 x 3000 is then 6e-6 away from the exact one; without them it was 3e-3.
LARGE, HIGHEST = 32 * SAMPLE**2, 1024
UNPACKED = 1 << 30  # bytes of a saved file: 24 KiB each of 40,000 images
CHUNK = 100  # resamples computed at a time, in some 30 MiB


def image_metrics(scores: npt.ArrayLike, kinds: Sequence[str], threshold: float | None = None) -> dict[str, Any]:
    """Return the metrics of raw scores of images [N]: plain Python values, ready for JSON.

    image_auroc, image_ap; at the threshold f1, precision, recall, false_alarm_rate (the share of the good images above
    it), accuracy, balanced_accuracy; by_type: images, image_auroc (against all good images) and recall of each defect
    type. A metric is None where the good images, defects, alarms or the threshold that it needs are missing.

    Raises:
        LabError: a score is not finite.
        ValueError: no images, or not one kind per score.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, truth = _scored(scores, kinds)
    both = truth.any() and not truth.all()
    metrics: dict[str, Any] = {
        "image_auroc": float(roc_auc_score(truth, scores)) if both else None,
        "image_ap": float(average_precision_score(truth, scores)) if both else None,
        "threshold": threshold,
        **_decisions(scores, truth, threshold),
        "by_type": {},
        "images": len(scores),
    }
    for kind in sorted(set(kinds) - {GOOD}):
        here = np.array([k == kind for k in kinds])
        metrics["by_type"][kind] = {
            "images": int(here.sum()),
            "image_auroc": float(roc_auc_score(here[here | ~truth], scores[here | ~truth])) if both else None,
            "recall": None if threshold is None else float((scores[here] > threshold).mean()),
        }
    return metrics


def image_figures(scores: np.ndarray, kinds: Sequence[str], value: float) -> dict[str, Any]:
    """Return ``image_metrics`` and the ``classification_metrics`` of the two classes good and defect."""
    metrics = image_metrics(scores, kinds, value)
    labels = np.array([kind != GOOD for kind in kinds], dtype=np.int64)
    as_classifier = classification_metrics(labels, np.eye(2)[(scores > value).astype(np.int64)], [GOOD, "defect"])
    for name in ("loss", "calibration_error"):  # of probabilities, which scores are not
        as_classifier.pop(name, None)
    metrics["recall_of_defects"] = metrics.pop("recall")
    return {**metrics, **as_classifier}  # recall by class, as every run has it


def _decisions(scores: np.ndarray, truth: np.ndarray, threshold: float | None) -> dict[str, float | None]:
    names = ("f1", "precision", "recall", "false_alarm_rate", "accuracy", "balanced_accuracy")
    if threshold is None:
        return dict.fromkeys(names)
    called = scores > threshold
    hits, alarms, missed = (int(part.sum()) for part in (called & truth, called & ~truth, ~called & truth))
    both = truth.any() and not truth.all()
    recall = hits / (hits + missed) if truth.any() else None
    false_alarms = None if truth.all() else alarms / int((~truth).sum())
    values = (
        2 * hits / (2 * hits + alarms + missed) if both else None,
        hits / (hits + alarms) if both and called.any() else None,
        recall,
        false_alarms,
        float((called == truth).mean()),
        None if recall is None or false_alarms is None else (recall + 1 - false_alarms) / 2,
    )
    return dict(zip(names, values, strict=True))


def image_intervals(
    scores: npt.ArrayLike, kinds: Sequence[str], confidence: float = 0.95
) -> dict[str, tuple[float, float] | None]:
    """Return the intervals of image_auroc and image_ap: the outer bounds of a bootstrap and of a score interval.

    The bootstrap (each resample has the same number of good images and of defects) is too narrow near 1 and has no
    width at 1: with 20 good images, 63 defects and AUROC 0.85 to 0.995, its 95% interval held the truth in 13 to 94% of
    the simulations. The score intervals keep a width: ``mann_whitney_interval``, and Wilson's, with AP as a proportion
    of the defects (the binomial interval of Boyd, Eng and Page, ECML 2013, in its score form). Alone they held the
    truth in 86 to 100%, the outer bounds in 92 to 100%.

    For perfect separation the interval of AUROC is [0.93, 1] with those numbers. If nothing is assumed of the scores'
    distributions, the bound is lower: AUROC is at least 0.05 ** (1 / images of the rarer kind), here 0.86, since a
    lower AUROC separates that number of images perfectly in less than 5% of the draws. (Obuchowski and Lieber, Academic
    Radiology 9, 2002, have bounds between the two for normal scores.)

    Both intervals are None where good images or defects are missing.
    """
    scores, truth = _scored(scores, kinds)
    defects = int(truth.sum())
    if not 0 < defects < len(truth):
        return {"image_auroc": None, "image_ap": None}
    order = np.argsort(-scores)
    starts = np.flatnonzero(np.diff(-scores[order], prepend=-np.inf))  # of the runs of equal scores

    def areas(weights: np.ndarray) -> np.ndarray:
        negative, positive = (np.add.reduceat((weights * of)[:, order], starts, axis=1) for of in (~truth, truth))
        return _areas(np.stack([negative, positive, positive], axis=1), np.ones(len(starts), dtype=bool), 1)[:, :2]

    (auroc, ap), drawn = areas(np.ones((1, len(truth))))[0], _in_chunks(areas, _resamples(truth))
    outer = [
        mann_whitney_interval(auroc, len(truth) - defects, defects, confidence),
        wilson_interval(ap * defects, defects, confidence),
    ]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {
        name: (min(float(low[k]), outer[k][0]), max(float(high[k]), outer[k][1]))
        for k, name in enumerate(("image_auroc", "image_ap"))
    }


def decision_intervals(
    scores: npt.ArrayLike, kinds: Sequence[str], threshold: float, confidence: float = 0.95
) -> dict[str, tuple[float, float] | None]:
    """Return Wilson's intervals of recall_of_defects and false_alarm_rate, the shares of images above a threshold.

    They are the rates of this threshold, as far as the tested images show them: another threshold from other good
    images would have other rates. An interval is None where defects, or good images, are missing.
    """
    scores, truth = _scored(scores, kinds)
    return {
        name: wilson_interval(int((scores[of] > threshold).sum()), int(of.sum()), confidence) if of.any() else None
        for name, of in (("recall_of_defects", truth), ("false_alarm_rate", ~truth))
    }


def quantile_threshold(good_scores: npt.ArrayLike, quantile: float) -> float:
    """Return the threshold above which a share ``1 - quantile`` of new good images is expected.

    It is interpolated from the scores of n good images, which no model that scored them has learnt from, at position
    quantile * (n + 1) (Weibull's): new scores exceed the
    k-th lowest of n with probability 1 - k / (n + 1), whatever their distribution. With 42 images and quantile 0.95,
    NumPy's default gives 7% false rejects instead of 5%. Above n / (n + 1) it is the highest score, with 1 / (n + 1)
    false rejects expected.

    Raises:
        LabError: no scores, or one is not finite.
    """
    scores = _finite(good_scores)
    if not scores.size:
        raise LabError("no good images to take a threshold from: add images, or give threshold.rule=best_f1")
    return float(np.quantile(scores, quantile, method="weibull"))


def best_f1_threshold(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Return the highest threshold of best F1, halfway between two scores; ``truth`` [N] says which are defects.

    Raises:
        LabError: no defects, or a score is not finite.
    """
    from sklearn.metrics import precision_recall_curve

    scores, truth = _finite(scores), np.asarray(truth, dtype=bool)
    if not truth.any():
        raise LabError("threshold.rule=best_f1 needs defects, and there are none: give threshold.rule=quantile")
    precision, recall, cuts = precision_recall_curve(truth, scores)  # at or above the ascending cuts
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
    cut = cuts[np.flatnonzero(f1[:-1] >= f1[:-1].max() - 1e-12)[-1]]  # equal ones differ by rounding
    below = scores[scores < cut]
    lowest = np.nextafter(cut, -np.inf)
    return float(min((below.max() + cut) / 2, lowest) if below.size else lowest)


class PixelScores:
    """Pixel AUROC, average precision and AUPRO at the masks' full resolution, image by image in bounded memory.

    Only histograms of each image are kept (24 KiB, of large maps 36), over BINS scores fixed before: quantiles of the
    maps, half of them spread evenly and half finer and finer towards the highest. In a bin, positives and negatives
    count as mixed evenly; a score that many pixels share has a bin of its own, where they count as tied. On bottle's 67
    million pixels every metric lies within 1e-5 of the exact one, whether maps are plain, skewed, saturated, rounded or
    noise.

    AUPRO is the mean over the masks' regions of the share of their pixels above a threshold, integrated over the
    false-positive rate up to a limit and divided by it; regions are 8-connected (Bergmann et al., IJCV 129, 2021, and
    the evaluation code of MVTec AD), and the points of the curve are joined by straight lines, at the limit too.

    Args:
        maps: all maps that will be added, [H, W] each, of any resolution; they choose the bins.

    Raises:
        LabError: a score is not finite.
    """

    def __init__(self, maps: Iterable[npt.ArrayLike]) -> None:
        self.edges = _edges(maps)
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.missing: list[str] = []  # defect images without a mask, which are left out
        self._counts: list[np.ndarray] = []

    def add(
        self,
        name: str,
        scores: npt.ArrayLike,
        mask: npt.ArrayLike | None,
        kind: str,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Count an image's pixels.

        Args:
            scores: the map [h, w], spread over the mask bilinearly in single precision, corners apart by half a pixel
                (OpenCV's INTER_LINEAR, torch's ``align_corners=False``).
            name: of the image.
            mask: [H, W], not zero where defective; None: a good image is sound everywhere, a defect image is left out.
            kind: "good" or the defect type.
            size: (H, W) of a good image, where it differs from its map's.

        Raises:
            LabError: a score is not finite.
        """
        import cv2

        if mask is None and kind != GOOD:
            self.missing.append(name)
            return
        low = np.ascontiguousarray(_finite(scores), dtype=np.float32)
        marked = np.zeros(size or low.shape, dtype=bool) if mask is None else np.asarray(mask) != 0
        full = cv2.resize(low, marked.shape[::-1], interpolation=cv2.INTER_LINEAR)
        bins, total = np.searchsorted(self.edges, full.ravel(), side="right"), len(self.edges) + 1
        counts = np.zeros((3, total), dtype=np.float32)  # sound pixels, defective ones, and these by their regions
        if marked.any():
            regions = cv2.connectedComponents(marked.astype(np.uint8), connectivity=8)[1][marked]
            inside = bins[marked.ravel()]
            counts[1] = np.bincount(inside, minlength=total)
            counts[2] = np.bincount(inside, 1 / np.bincount(regions)[regions], minlength=total)
        counts[0] = np.bincount(bins, minlength=total) - counts[1]
        self.names.append(name)
        self.kinds.append(kind)
        self._counts.append(counts)

    def metrics(self, limit: float = PRO_LIMIT) -> dict[str, Any]:
        """Return the PIXEL_METRICS over all images and, by_type, of each defect type beside the good images.

        images is the number of images that count, missing_masks that of images left out. A metric is None where no
        pixel is defective, or none is sound.
        """
        types = sorted(set(self.kinds) - {GOOD})
        return {
            **self._named(self._values(np.ones((1, len(self.kinds))), limit)[0]),
            "by_type": {
                kind: self._named(self._values(np.array([[k in (GOOD, kind) for k in self.kinds]]), limit)[0])
                for kind in types
            },
            "images": len(self.kinds),
            "missing_masks": len(self.missing),
        }

    def intervals(self, limit: float = PRO_LIMIT, confidence: float = 0.95) -> dict[str, tuple[float, float] | None]:
        """Return percentile intervals of the PIXEL_METRICS over resampled images.

        Each resample has the same number of good and of defective images. An interval is None with fewer than two
        images with a defect, or where a draw has no sound pixel. Maps that are right everywhere in every image leave an
        interval without width, which says nothing.
        """
        drawn = self.draws(limit)[1:]
        if self._defect().sum() < 2 or np.isnan(drawn).any():
            return dict.fromkeys(PIXEL_METRICS)
        low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        return {name: (float(low[k]), float(high[k])) for k, name in enumerate(PIXEL_METRICS)}

    def draws(self, limit: float = PRO_LIMIT) -> np.ndarray:
        """Return the PIXEL_METRICS of the images as they are, then of RESAMPLES draws of them: [1 + RESAMPLES, 3].

        The draws do not depend on the order in which the images were added. NaN stands where ``metrics`` has None.
        """
        order = np.argsort(self.names)
        drawn = np.ones((1 + RESAMPLES, len(order)))
        drawn[1:, order] = _resamples(self._defect()[order])
        return self._values(drawn, limit)

    def contributions(self, limit: float = PRO_LIMIT) -> tuple[np.ndarray, np.ndarray]:
        """Return what each image contributes to the PIXEL_METRICS, [N, 3], and which images have a defect, [N].

        The images are in the order of their names, so that the contributions of two methods are paired. They are
        jackknife pseudo-values: n times the metric minus n - 1 times the metric without that image, for n images of its
        kind, good or defective, whose total weight stays. NaN where one of the metrics does not exist.
        """
        order, defect = np.argsort(self.names), self._defect()
        if not self._counts:
            return np.zeros((0, len(PIXEL_METRICS))), defect
        counts, kinds = np.stack(self._counts)[:, :, ::-1], defect.astype(int)
        sizes = np.bincount(kinds, minlength=2)
        totals = np.stack([counts[kinds == kind].sum(axis=0, dtype=np.float64) for kind in (0, 1)])

        def without(images: np.ndarray) -> np.ndarray:
            kind = kinds[images]
            weight = sizes[kind] / np.maximum(sizes[kind] - 1, 1)
            rest = (totals[kind] - counts[images]) * weight[:, None, None]
            return self._areas_of(totals[1 - kind] + rest, limit)

        n = sizes[kinds][:, None]
        values = n * self._areas_of(totals.sum(axis=0), limit) - (n - 1) * _in_chunks(without, np.arange(len(counts)))
        return values[order], defect[order]

    def save(self, path: Path) -> None:
        """Write the counts to an .npz file, for a later comparison."""
        counts = np.array(self._counts, dtype=np.float32).reshape(-1, 3, len(self.edges) + 1)
        file = io.BytesIO()
        np.savez_compressed(
            file, edges=self.edges, counts=counts, names=self.names, kinds=self.kinds, missing=self.missing
        )
        write_whole(path, file.getbuffer())

    @classmethod
    def load(cls, path: Path) -> PixelScores:
        """Return the counts that ``save`` wrote.

        Raises:
            ValueError: it is not what was saved, or unpacks to more than UNPACKED; other errors of NumPy and zipfile.
        """
        with zipfile.ZipFile(path) as archive:  # before NumPy allocates the sizes that the file states
            if sum(entry.file_size for entry in archive.infolist()) > UNPACKED:
                raise ValueError(f"it unpacks to more than {UNPACKED:,} bytes")
        found = cls.__new__(cls)
        with np.load(path, allow_pickle=False) as file:
            found.edges, counts = file["edges"], file["counts"]
            found.names, found.kinds, found.missing = (file[n].tolist() for n in ("names", "kinds", "missing"))
        sizes = (len(found.names), 3, len(found.edges) + 1)
        if found.edges.ndim != 1 or counts.shape != sizes or counts.dtype != np.float32:
            raise ValueError(f"counts are {counts.dtype} {counts.shape}, expected float32 {sizes}")
        if not (np.isfinite(found.edges).all() and np.isfinite(counts).all() and (counts >= 0).all()):
            raise ValueError("a count or a score is not finite, or a count is negative")
        if len(set(found.names)) < sizes[0] or len(found.kinds) != sizes[0]:
            raise ValueError("an image is named twice, or has no kind")
        found._counts = list(counts)
        return found

    def _defect(self) -> np.ndarray:
        """Return which images have a defective pixel: draws that keep their number have all metrics."""
        return np.array([counts[1].any() for counts in self._counts], dtype=bool)

    def _values(self, weights: np.ndarray, limit: float) -> np.ndarray:
        """Return the PIXEL_METRICS [R, 3] of images that count ``weights`` [R, N] times; NaN as in ``draws``."""
        if not self._counts:
            return np.full((len(weights), 3), np.nan)
        each = np.stack(self._counts)[:, :, ::-1].reshape(len(self._counts), -1)

        def areas(part: np.ndarray) -> np.ndarray:
            return self._areas_of((part.astype(np.float32) @ each).reshape(len(part), 3, -1), limit)

        return _in_chunks(areas, weights)

    def _areas_of(self, counts: np.ndarray, limit: float) -> np.ndarray:
        """Return the PIXEL_METRICS of counts [..., 3, B] from the highest score down."""
        tied = np.concatenate([[False], self.edges[1:] == _above(self.edges[:-1]), [False]])[::-1]
        return _areas(counts, tied, limit)

    @staticmethod
    def _named(values: np.ndarray) -> dict[str, float | None]:
        return {n: None if np.isnan(v) else float(v) for n, v in zip(PIXEL_METRICS, values, strict=True)}


def _areas(counts: np.ndarray, tied: np.ndarray, limit: float) -> np.ndarray:
    """Return AUROC, average precision and AUPRO [..., 3]; NaN where nothing is positive or nothing negative.

    Args:
        counts: negatives, positives and positives as shares of their regions, [..., 3, B], from the highest score down.
        tied: the bins [B] in which all scores are equal; in the others they count as mixed evenly.
        limit: of the false-positive rate, for AUPRO.
    """
    counts = counts.astype(np.float64)
    negative, positive = counts[..., 0, :], counts[..., 1, :]
    false, true, found = np.moveaxis(counts.cumsum(axis=-1), -2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        fpr, tpr, pro = (part / part[..., -1:] for part in (false, true, found))
        before, step = _before(fpr), np.diff(fpr, prepend=0)
        auroc = (step * (tpr + _before(tpr)) / 2).sum(axis=-1)
        # The precision where the bin's middle positive is found, or its last where all come at once.
        hits = true - np.where(tied, 0, (positive - 1) / 2)
        alarms = false - np.where(tied, 0, negative / 2)
        ap = (positive * hits / np.maximum(hits + alarms, 0.5)).sum(axis=-1) / true[..., -1]
        within = np.minimum(fpr, limit) - np.minimum(before, limit)
        start = _before(pro)
        end = start + (pro - start) * np.divide(within, step, out=np.zeros_like(step), where=step > 0)
        aupro = (within * (start + end) / 2).sum(axis=-1) / limit
    exists = (false[..., -1] > 0) & (true[..., -1] > 0)
    return np.where(exists[..., None], np.stack([auroc, ap, aupro], axis=-1), np.nan)


def _in_chunks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    return np.concatenate([function(rows[at : at + CHUNK]) for at in range(0, len(rows), CHUNK)])


def _before(curve: np.ndarray) -> np.ndarray:
    """Return the start of each bin: the end of the one before, 0 at first."""
    return np.concatenate([np.zeros_like(curve[..., :1]), curve[..., :-1]], axis=-1)


def _edges(maps: Iterable[npt.ArrayLike]) -> np.ndarray:
    """Return at most 3 * BINS ascending scores, float32, between which pixels are counted together."""
    import cv2

    parts: list[np.ndarray] = []
    highest: list[np.ndarray] = []
    for each in maps:
        scores = np.ascontiguousarray(_finite(each), dtype=np.float32)
        # Spread as they will be: between pixels of few distinct scores lie many others.
        spread = cv2.resize(scores, (SAMPLE, SAMPLE), interpolation=cv2.INTER_LINEAR)
        parts += [spread.ravel(), np.array([scores.min(), scores.max()])]
        if scores.size > LARGE:
            highest.append(np.partition(scores.ravel(), -HIGHEST)[-HIGHEST:])
    if not parts:
        raise ValueError("no maps to choose the bins from")
    tail = np.geomspace(1e-6, 1, BINS // 2)
    edges = _cuts(parts, 1 - np.union1d(np.linspace(0, 1, BINS // 2), tail))
    return np.union1d(edges, _cuts(highest, 1 - tail)) if highest else edges


def _cuts(parts: Sequence[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """Return the quantiles of scores, ascending float32; one that many of them share comes with the next larger."""
    cuts = np.quantile(np.concatenate(parts), shares, overwrite_input=True)
    edges, times = np.unique(cuts.astype(np.float32), return_counts=True)
    return np.union1d(edges, _above(edges[times > 1]))


def _above(scores: np.ndarray) -> np.ndarray:
    """Return the next larger numbers: OpenCV's interpolation between equal scores stays below them."""
    return np.nextafter(scores, np.float32(np.inf))


def _resamples(defect: np.ndarray) -> np.ndarray:
    """Return how often each resample draws each image, [RESAMPLES, N]: good images and defects are drawn apart."""
    rng, drawn = np.random.default_rng(0), np.zeros((RESAMPLES, len(defect)))
    for kind in (defect, ~defect):
        if number := int(kind.sum()):
            drawn[:, kind] = rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
    return drawn


def _scored(scores: npt.ArrayLike, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores, which are finite, and which of them are defects."""
    scores, truth = _finite(scores), np.array([kind != GOOD for kind in kinds], dtype=bool)
    if not len(truth):
        raise ValueError("no images to score")
    if scores.shape != truth.shape:
        raise ValueError(f"scores are {scores.shape}, expected {truth.shape}")
    return scores, truth


def _finite(scores: npt.ArrayLike) -> np.ndarray:
    """Return scores as an array, in the precision that they have; LabError where one is not finite."""
    scores = np.asarray(scores)
    scores = scores if scores.dtype == np.float32 else scores.astype(np.float64)
    if not np.isfinite(scores).all():
        raise LabError("anomaly scores are not finite: the method has diverged; give a lower optimizer.lr")
    return scores
