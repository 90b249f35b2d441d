"""Write the model card of an exported folder: what its run knows of the model, for whoever uses it without the lab."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvtec_lab.data.catalogue import LICENSE
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.operating import OK, REJECT, REVIEW, UNKNOWN, interval, percent
from mvtec_lab.evaluation.specs import Metric, intervals, metrics_of
from mvtec_lab.reporting.expected import expected, run_of_checkpoint
from mvtec_lab.reporting.product_names import of_its_product
from mvtec_lab.reporting.runs import tested
from mvtec_lab.results import RunResult

CARD = "model_card.md"
TERMS = {  # of images, by ``data``
    "mvtec": LICENSE,
    "sample": "drawn by mvtec_lab, Apache-2.0 like its code",
}
ASK = "not known to mvtec_lab: ask whoever took the images"
DECISIONS = (OK, REVIEW, REJECT, UNKNOWN)
FEW = 100  # test images below which the interval of any share is wider than 15 points or so: see the intervals


def card(ckpt: Path, about: Mapping[str, Any], method_terms: str = "") -> str:
    """Return the model card of a checkpoint, as Markdown.

    Args:
        about: what export.json says of the model.
        method_terms: the licence of weights that the method itself brings along; empty: it brings none.
    """
    try:
        run, point = run_of_checkpoint(ckpt)
    except LabError:  # a damaged file beside it
        run, point = None, None
    run = run and of_its_product(run)
    parts = [f"# Model card: {run.attempt} for {_code(run.category)}" if run else f"# Model card: {about['method']}"]
    expectation = expected(ckpt)
    parts.append("\n".join([f"**{expectation.word}.** {expectation.sentence}", *expectation.further]))
    parts += _purpose(run, about)
    if run is not None:
        parts += _data(run)
        parts += _figures(run, moved=point is not None)
    parts += _point(point, about)
    parts += _int8(about.get("int8"))
    parts += _limits(run)
    parts += _terms(run, about, method_terms)
    if run is not None:
        made = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        when = f"Attempt {_code(run.attempt)}, seed {run.seed}, begun {run.started[:10]}"
        parts += ["## How it was made", f"{when}, with {made}." if made else f"{when}."]
        if run.git_revision:
            parts.append(f"Revision {_code(run.git_revision)}.")
    parts.append(f"Checkpoint: {_code(str(ckpt))}. `SHA256SUMS` has the digests of the files beside this one.")
    return "\n\n".join(parts) + "\n"


def _purpose(run: RunResult | None, about: Mapping[str, Any]) -> list[str]:
    names = ", ".join(map(_code, about["classes"]))
    what = f"the product {_code(run.category)}" if run else "one product"
    lines = [f"It judges images of {what}: {names}."]
    if run is not None and run.problem:
        over = f" over {_code(run.backbone)}" if run.backbone not in ("", "none") else ""
        lines.append(
            f"What was learnt: {run.problem}, by attempt {_code(run.attempt)}: method {_code(run.method)}{over}."
        )
    lines.append(
        "It is for images like those that it was tested on: the same product, camera, lens, light and position. It has "
        "seen no others, and says nothing of defects that no image shows. It is no safety device."
    )
    return ["## What it is for", "\n".join(lines)]


def _data(run: RunResult) -> list[str]:
    classes = list(dict.fromkeys(name for counts in run.counts.values() for name in counts))
    rows = [[split, *(counts.get(name, 0) for name in classes)] for split, counts in run.counts.items()]
    return ["## Data", f"Images of `data={run.data}` by split and class:", _table(["", *classes], rows)]


def _figures(run: RunResult, moved: bool) -> list[str]:
    """Return the figures that a run reached on test; ``moved``: another threshold than its own decides now."""
    if run.untested:
        return ["## Figures", "No image has tested this model: it has learnt them all."]
    test = run.metrics.get("test", {})
    known = [(metric, metric.of(test)) for metric in metrics_of(run.problem)]
    bounds = dict(test.get("intervals", {}))
    with suppress(LabError):  # predictions.csv may be damaged
        bounds |= intervals(run.problem, test, predicted) if (predicted := tested(run)) else {}
    rows = [
        [metric.title, _value(metric, value), _bounds(metric, bounds.get(metric.key))]
        for metric, value in known
        if value is not None
    ]
    if run.majority_baseline is not None:
        rows.append(["accuracy of always naming the most frequent class", f"{run.majority_baseline:.3f}", ""])
    title = f"On {test.get('images')} test images" + (
        ", which chose it as well (`split.val_is_test`): too good" if run.val_is_test else ", which chose nothing"
    )
    own = "the threshold was moved" if run.threshold else "a threshold decided"
    title += f", before {own}: the operating point has its own rates" * moved
    return ["## Figures", f"{title}:", _table(["metric", "value", "95% interval"], rows)]


def _point(point: Mapping[str, Any] | None, about: Mapping[str, Any]) -> list[str]:
    limit, accept = about.get("threshold"), about.get("accept")
    if limit is None:
        text = "None was chosen: the most probable class decides" + (
            ", and an image of which the model is not sure is `REVIEW`." if "least" in about else "."
        )
    elif accept is not None and accept < limit:
        text = f"`REJECT` above a score of {limit:.6g}, `OK` up to {accept:.6g}, `REVIEW` between."
    else:
        text = f"`REJECT` above a score of {limit:.6g}, else `OK`."
    lines = [text]
    if (known := about.get("unknown")) is not None:
        but = "" if known["first"] else ", where the score does not reject it"
        lines.append(
            f"`UNKNOWN`: an image farther than {known['above']:.3g} from every training image in frozen features{but}."
        )
    else:
        lines.append("It calls no image `UNKNOWN`: of what is unlike anything in training it says nothing sensible.")
    if point is not None:
        asked = " ".join(f"{name}={value:g}" for name, value in point.get("rule", {}).items())
        lines.append(f"Chosen by `{asked}` on held-out images: {point.get('held_out', {}).get('by', '')}.")
        for name, what in (("false_rejects", "good images are rejected"), ("escapes", "defects pass")):
            if rate := point.get("expected", {}).get(name):
                bounds = interval(rate["low"], rate["high"])
                expect = f"expect {percent(rate['expected'])}% of new ones"
                lines.append(f"Held out, {rate['count']} of {rate['of']} {what} ({bounds}); {expect}.")
            if rate := point.get("test", {}).get(name):
                bounds = interval(rate["low"], rate["high"])
                lines.append(f"On test, {rate['count']} of {rate['of']} {what} ({bounds}).")
    return ["## Operating point", "\n".join(lines)]


def _int8(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    rows = [
        [name, of, *(found["decisions"][of].get(word, 0) for word in DECISIONS), f"{found['milliseconds'][of]:.3g}"]
        for name, of in (("`model.onnx`", "float32"), ("`model_int8.onnx`", "int8"))
    ]
    text = (
        f"On {found['images']} test images, in milliseconds {found['timed']} on one thread of the processor that "
        f"exported it; **{len(found['changed'])} images** are decided or named otherwise, and scores differ by "
        f"{found['difference']:.2g} of the largest at most. The thresholds are those of `model.onnx`. Ranges were "
        f"measured on {found['calibrated_on']} training images. Run it by `infer.py --model model_int8.onnx`."
    )
    return ["## In 8-bit integers", text, _table(["file", "numbers", *DECISIONS, "ms"], rows)]


def _limits(run: RunResult | None) -> list[str]:
    lines = ["one product, from one set of images: what another batch, season or machine changes is not in the figures"]
    if run is None:
        return ["## Limits", _list([*lines, "its run is not known here: neither its data nor its figures"])]
    if not run.untested and (images := run.metrics.get("test", {}).get("images") or 0) < FEW:
        lines.append(f"{images} test images are few: read the intervals, not the values")
    if run.val_is_test:
        lines.append("validated on its test images: every figure is too good")
    if run.data == "sample":
        lines.append("trained on drawn images: it is of no use for a real product")
    return ["## Limits", _list([*lines, *run.warnings])]


def _terms(run: RunResult | None, about: Mapping[str, Any], method_terms: str) -> list[str]:
    lines = [f"images: {TERMS.get(run.data, ASK) if run else ASK}"]
    if method_terms:
        lines.append(f"weights of {_code(about['method'])}: {method_terms}")
    if run is not None and run.backbone not in ("", "none"):
        lines.append(f"weights that {_code(run.backbone)} began with: {_weights(run.weights, run.backbone)}")
    lines.append("whether a model that learnt from images and weights falls under their terms is for a lawyer to say")
    return ["## Licences", _list(lines)]


def _weights(name: str | None, backbone: str) -> str:
    if name in (None, "random"):
        return "random ones, nobody's"
    if name == "SAMPLE_V1":
        return "SAMPLE_V1, made by mvtec_lab from drawn pictures, Apache-2.0 like its code"
    if str(name).startswith("file:"):
        return f"those of {_code(str(name)[5:])}, whose terms are not known to mvtec_lab"
    if backbone.startswith("timm/"):
        return f"{_code(str(name))} of timm, whose page for the model has its terms"
    return (
        f"TorchVision's {_code(str(name))}, learnt from ImageNet, whose images are for non-commercial research and "
        "education; TorchVision leaves it to the user to find out whether a use is allowed"
    )


def _value(metric: Metric, value: float) -> str:
    return f"{value:.3f}" if metric.share else f"{value:.3g} {metric.unit}".rstrip()


def _bounds(metric: Metric, bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{_value(metric, bounds[0])} to {_value(metric, bounds[1])}"


def _table(headings: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (headings, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(headings) + "|", *lines[1:]])


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _code(text: str) -> str:
    return f"`{text.replace('`', ' ')}`"
