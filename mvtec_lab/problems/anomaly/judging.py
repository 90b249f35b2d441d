"""Choose an anomaly model's threshold, and judge it on the test images.

The threshold of a method that is fitted once comes from all good images: each is scored by a model that was fitted to
the others but a fold. Training by gradient once more for every fold is too dear: its threshold comes from the
validation images, which are the first fold.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from mvtec_lab.data.dataset import MVTecDataset, Rows
from mvtec_lab.data.samples import Sample, by_image
from mvtec_lab.data.splits import cross_folds
from mvtec_lab.engine.run import Judgement, Run
from mvtec_lab.evaluation.anomaly import best_f1_threshold, image_figures, quantile_threshold
from mvtec_lab.evaluation.metrics import majority_baseline
from mvtec_lab.evaluation.specs import deciding
from mvtec_lab.problems.anomaly.methods.cutpaste.model import paste_patch
from mvtec_lab.problems.anomaly.scores import SHOWN, pictures, score, sheets, warm_up
from mvtec_lab.problems.anomaly.training import out_of_fold
from mvtec_lab.problems.scored import Scored, figures, prediction_rows
from mvtec_lab.results import BEST, EXPLANATIONS, MISTAKES, SYNTHETIC

TAGS = {MISTAKES: "pictures/test_mistakes_first", EXPLANATIONS: "pictures/maps"}
MAPS = (
    "Where",
    "The worst escapes and false rejects, and typical images; all maps have one scale, from yellow to red. Blue: the "
    "outline of the defect's mask; orange: where the map exceeds its threshold, which few good images reach.",
)
NO_MAP = ("", "This method scores whole images: it has no map.")


def judge(run: Run) -> Judgement:
    """Score all images, choose the threshold where the model has none yet, and write best.ckpt then."""
    data, result, model, device = run.data, run.result, run.model, run.model.module.device
    if device.type != "cpu":
        warm_up(model.module, data.dataset("test"), data.batch_size, device)
    started = time.perf_counter()
    of_test = score(model.module, data.dataset("test"), data.batch_size, device)
    test = Scored(data.images(data.of_split("test")), *of_test)
    result.seconds_per_image = (time.perf_counter() - started) / len(test.scores)
    scored, chosen = {"test": test}, {}  # a loaded checkpoint does not say by which rule
    if model.threshold is None:
        folds = _folds(run)
        scored |= _good(run, folds)
        model.threshold, model.map_threshold = _thresholds(run, scored)
        chosen = {"rule": run.config.threshold.rule, "images": sum(map(len, folds)), "folds": len(folds)}
        model.save(run.run_dir / BEST)
    result.peak_mib = run.peak_mib()
    value = model.threshold
    result.threshold = {"value": value, **chosen, "map": model.map_threshold}
    if len(test.scores) > 1 and np.ptp(test.scores) == 0:
        run.warn("all test images have the same score: nothing tells them apart")
    rows = {name: prediction_rows(name, part, value, model.map_threshold) for name, part in scored.items()}
    metrics = {"test": figures(test, run, value, rows["test"])}
    if chosen.get("rule") == "quantile":
        result.threshold |= _kept(run, metrics["test"]["intervals"]["false_alarm_rate"])
    if SYNTHETIC in scored:
        val, pasted = scored["val"], scored[SYNTHETIC]
        kinds = [*val.kinds, *pasted.kinds]
        metrics["val"] = image_figures(np.concatenate([val.scores, pasted.scores]), kinds, value)
    result.majority_baseline = majority_baseline(np.zeros(1, dtype=np.int64), test.defect.astype(np.int64))
    in_order = [row for name in ("val", SYNTHETIC, "test") for row in rows.get(name, ())]
    pages = sheets(scored, value, model.map_threshold)
    result.captions = {EXPLANATIONS: [*(MAPS if EXPLANATIONS in pages else NO_MAP)]}
    board = {TAGS[name]: page for name, page in pages.items()}
    if SYNTHETIC in scored:
        pasted = scored[SYNTHETIC]
        board["pictures/synthetic_defects"] = pictures(pasted, np.arange(len(pasted.scores))[: 6 * SHOWN], value)
    return Judgement(metrics, in_order, pages, board, _summary(run, test, metrics["test"], value))


def _folds(run: Run) -> list[list[Sample]]:
    """Return the good images that choose the threshold; the first fold is what the run's model has not seen."""
    train, val = run.data.of_split("train"), run.data.of_split("val")
    return [val] if run.model.module.method.trains else cross_folds(train, val, run.config.split.seed)


def _good(run: Run, folds: Sequence[Sequence[Sample]]) -> dict[str, Scored]:
    """Return the scores of all folds as ``val``, and those of their copies with a patch where the rule wants them."""
    started, data = time.perf_counter(), run.data
    good = [sample for fold in folds for sample in fold]
    parts, seen = {"val": data.images(good)}, {"val": data.images(data.tiles(good))}  # the same images, or their tiles
    if run.config.threshold.rule == "synthetic":
        parts[SYNTHETIC], seen[SYNTHETIC] = with_pasted_patches(seen["val"], run.config.seed)
    scored = {name: Scored(parts[name], *scores) for name, scores in out_of_fold(run, seen, folds).items()}
    run.result.seconds += time.perf_counter() - started
    return scored


def _kept(run: Run, interval: tuple[float, float] | None) -> dict[str, Any]:
    """Return the rate of false rejects that was asked for, and whether the test's interval holds it; warn if not."""
    asked = round(1 - run.config.threshold.quantile, 9)  # 0.05, not 0.050000000000000044
    kept = None if interval is None else interval[0] <= asked <= interval[1]
    if interval is not None and not kept:
        more = "more" if interval[0] > asked else "fewer"
        run.warn(
            f"{more} false rejects than threshold.quantile={run.config.threshold.quantile:g} asks for: the interval of "
            f"their rate does not hold {asked:.3g}: by chance, or the good test images differ from those learnt"
        )
    return {"asked": asked, "kept": kept}


def _thresholds(run: Run, scored: dict[str, Scored]) -> tuple[float, float | None]:
    """Return the threshold of an image's score, and that of a map's pixel.

    The latter rests on good images alone, whatever the rule: it is the quantile ``threshold.quantile`` of the highest
    pixels of their maps. One good image in twenty has a pixel above it.
    """
    rule, quantile, val = run.config.threshold.rule, run.config.threshold.quantile, scored["val"]
    on_map = None if val.maps is None else quantile_threshold([score_map.max() for score_map in val.maps], quantile)
    if rule == "quantile":
        return quantile_threshold(val.scores, quantile), on_map
    judged = [scored["test"]] if rule == "best_f1" else [val, scored[SYNTHETIC]]
    scores, defect = (np.concatenate([getattr(part, name) for part in judged]) for name in ("scores", "defect"))
    return best_f1_threshold(scores, defect), on_map


def _summary(run: Run, test: Scored, metrics: dict, value: float) -> str:
    alarms = test.scores > value
    known = [(m.title, rank) for m in deciding("anomaly") if (rank := m.of(metrics)) is not None]
    ranks = "".join(f"{title} {rank:.3f}, " for title, rank in known)
    return (
        f"{ranks}false rejects {(alarms & ~test.defect).sum()} of {(~test.defect).sum()} good images, escapes "
        f"{(~alarms & test.defect).sum()} of {test.defect.sum()} defects (threshold {value:.3g}); fit "
        f"{run.result.fit_seconds or 0:.1f} s, {run.result.seconds_per_image:.3f} s per image"
    )


def with_pasted_patches(dataset: MVTecDataset, seed: int) -> tuple[MVTecDataset, MVTecDataset]:
    """Return copies of good images with a patch pasted as CutPaste does: defects to choose a threshold on.

    Of an image in tiles, one tile has the patch. Torch's random generators are left as they are.

    Args:
        dataset: the images, or all of their tiles.

    Returns:
        The pictures with a patch, one of each image, and the images or all of their tiles.
    """
    images = by_image(dataset.samples)
    first = np.cumsum([0, *(len(tiles) for tiles in images)])

    def pasted(place: int) -> torch.Tensor:
        image = paste_patch(torch.from_numpy(dataset.shown(place)).movedim(2, 0) / 255)
        return torch.from_numpy(dataset.padded(place, image.movedim(0, 2).mul(255).round().to(torch.uint8).numpy()))

    with isolate_rng():
        torch.manual_seed(seed)
        # No draw where there is no choice: whole images are pasted as they were before there were tiles.
        chosen = [
            int(start) + (int(torch.randint(len(tiles), ())) if len(tiles) > 1 else 0)
            for start, tiles in zip(first, images, strict=False)
        ]
        pictures = torch.stack([pasted(place) for place in chosen])

    def changed(samples: Sequence[Sample], rows: Rows) -> MVTecDataset:
        return MVTecDataset(
            dataset.folder,
            [replace(sample, label=SYNTHETIC) for sample in samples],
            image_size=dataset.frame,
            white=dataset.white,
            mean=dataset.mean,
            std=dataset.std,
            pictures=rows,
        )

    whole = changed([dataset.samples[place] for place in chosen], Rows(pictures, range(len(pictures))))
    if len(dataset) == len(images):
        return whole, whole
    return whole, changed(dataset.samples, _Exchanged(dataset, dict(zip(chosen, pictures, strict=True))))


class _Exchanged(Rows):
    """Give the pictures of a data set, but others in some places."""

    def __init__(self, dataset: MVTecDataset, others: Mapping[int, torch.Tensor]) -> None:
        self.dataset, self.others = dataset, others

    def __getitem__(self, places: list[int]) -> torch.Tensor:
        pictures = torch.from_numpy(self.dataset.pictures_at(places))
        for row, place in enumerate(places):
            if place in self.others:
                pictures[row] = self.others[place]
        return pictures

    def near(self, device: torch.device) -> Rows:
        return self
