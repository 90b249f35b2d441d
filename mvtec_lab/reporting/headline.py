"""Say what to do with a comparison, for somebody who reads nothing else: which attempt to use, how sure, what next.

The light repeats it by colour, shape and word: green where the tests show what is said, amber where they leave it open,
red where there is nothing to use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from mvtec_lab.evaluation.differences import LEAST_RUNS
from mvtec_lab.evaluation.specs import Metric, metrics_of
from mvtec_lab.reporting.attempts import Attempt, Estimate, too_few
from mvtec_lab.reporting.choice import UNDECIDED, Choice, Contest, Light, alone, unlearnt
from mvtec_lab.reporting.families import outdone
from mvtec_lab.reporting.pairs import Block, Comparison
from mvtec_lab.reporting.verdict import FEW, validated_alike
from mvtec_lab.results import GOOD, RunResult

SHAPES: dict[Light, str] = {"green": "●", "amber": "▲", "red": "■"}  # in a terminal; the page draws the same shapes
ESCAPES, REJECTS = "escapes", "false rejects"
MEANING = {ESCAPES: "of the defects pass as good", REJECTS: "of the good products are refused"}
MARKS: dict[Light, str] = {"green": "use this one", "amber": "if one has to be chosen"}
LATE = 0.9  # of the epochs: one whose weights were kept lies so near the end that training had not settled
FEW_IMAGES = 5  # training images of a class; below it the class is hardly seen


@dataclass
class Headline:
    """Hold the first lines of a verdict."""

    light: Light
    word: str  #: beside the light
    use: str  #: which attempt to use, in a sentence
    sure: str = ""  #: what to expect of it on new images
    next: str = ""  #: what to do next, in a sentence
    #: its mistakes on test, by kind: escapes, false rejects; shares with their 95% intervals
    mistakes: dict[str, Estimate] = field(default_factory=dict)
    chosen: str = ""  #: the attempt that is named, of several
    mark: str = ""  #: what stands beside its name in the table of results

    @property
    def lines(self) -> list[str]:
        """Return the headline as lines for a terminal, the light first."""
        mistakes = "; ".join(f"{kind}: {mistake_of(kind, share)}" for kind, share in self.mistakes.items())
        first = f"{SHAPES[self.light]} {self.word}. {self.use}"
        return [first, *(line for line in (self.sure, f"{capital(mistakes)}." if mistakes else "", self.next) if line)]


def headline_of(comparison: Comparison) -> Headline:
    """Return the headline of a comparison whose verdict is drawn."""
    done = comparison.compared
    if not done:
        return Headline("red", "Failed", "There is nothing to use: no run was completed.", next="Next: see why, below.")
    if all(run.untested for attempt in done for run in attempt.done):
        return untested()
    best = next((attempt for attempt in done if attempt.name == comparison.best), None)
    if best is None:
        return _of_blocks(comparison)
    choice = _choice(best, comparison)
    chosen = next(attempt for attempt in done if attempt.name == choice.name)
    sure, further = _sure(chosen, choice), _next(chosen, choice.light, comparison)
    name, mark = (chosen.name, MARKS[choice.light]) if len(done) > 1 and choice.light in MARKS else ("", "")
    mistakes = {} if choice.light == "red" else mistakes_of(chosen)  # they would be those of one that nobody is to use
    return Headline(choice.light, choice.word, choice.use, sure, further, mistakes, name, mark)


def untested() -> Headline:
    """Return the headline of models that no image has tested."""
    expected = "What to expect is the figure that their attempt had in cross-validation (cv.folds)."
    return Headline("amber", "Untested", "These models have learnt what would have tested them.", expected)


def _of_blocks(comparison: Comparison) -> Headline:
    """Return the headline where no single attempt can be named: the best of those that compare with each other."""
    blocks, metrics = comparison.blocks, len(comparison.metrics)
    if len(blocks) == 1:
        use, what = _of_one_block(blocks[0])
        return Headline("amber", "Open", use, next=f"Next: {what}.")
    images = len(blocks) > metrics
    why = " and ".join(["on different images"] * images + ["by different metrics"] * (metrics > 1))
    best = f"the best of each group: {'; '.join(map(_best_of, blocks))}"
    if len(blocks) > FEW:
        best = f"the verdict names the best of each of {len(blocks)} groups"
    what = "choose by the metric that your line needs" if metrics > 1 else "give all of them the same data and split"
    use = f"No single attempt can be named, as they were judged {why}. {capital(best)}."
    return Headline("amber", "Open", use, next=f"Next: {what}.")


def _of_one_block(block: Block) -> tuple[str, str]:
    """Say why none of some attempts on the same images can be named, and what to do."""
    best, many = block.best, len(block.attempts)
    if best is None:
        few = too_few(block.attempts) or "no test set is done by"
        return f"None of these {many} attempts can be named: {few} all of them.", "run the others (resume=true)"
    on_test = f"on test the best is {_with_figure(best)}, and that choice flatters it"
    return f"Validation cannot choose among these {many} attempts; {on_test}.", "test it on new images (task=evaluate)"


def _best_of(block: Block) -> str:
    """Return the best attempt of a block with its figure, and what chose it."""
    names = ", ".join(attempt.name for attempt in block.attempts)
    if block.best is None:
        return f"none of {names}, which share too few test sets"
    others = len(block.attempts) - 1
    if not others:
        chosen = "the only one there"
    else:
        chosen = f"the best of {others + 1} on {'test' if block.value is None else 'validation'}"
    nothing = ", not shown to have learnt anything" if block.best.learnt is False else ""
    return f"{_with_figure(block.best)}, {chosen}{nothing}"


def _with_figure(attempt: Attempt) -> str:
    estimate = attempt.estimate()
    return attempt.name if estimate is None else f"{attempt.name} ({attempt.metric.title} {estimate})"


def _choice(best: Attempt, comparison: Comparison) -> Choice:
    """Return which attempt to use; ``best``: the one that validation chose."""
    named = {attempt.name: attempt for attempt in comparison.compared}
    if comparison.nothing_learnt:
        return unlearnt([best.name, *(name for name in named if name != best.name)], likely(best))
    ranked, pairs, names = comparison.blocks[0].ranked, comparison.pairs, [*named]
    if comparison.reference is None:  # one with fewer training images is no rival
        names = [name for name, attempt in named.items() if not outdone(attempt, ranked)]
        pairs = [pair for pair in pairs if {pair.first, pair.second} <= {*names}]
    if len(names) == 1:
        return alone(best.name, bool(best.learnt), chance_of(best.metric))
    return Contest(
        best.name,
        pairs,
        names,
        [attempt.name for attempt in ranked],
        lambda name: validated_alike(best, named[name]),
        comparison.reference,
    ).choice()


def chance_of(metric: Metric) -> str:
    """Return in words what an attempt that learnt nothing is like."""
    return metric.chance[1] if metric.chance else "chance"


def _sure(chosen: Attempt, choice: Choice) -> str:
    """Say what to expect of an attempt on new images."""
    estimate, metric = chosen.estimate(), chosen.metric
    if estimate is None or choice.light == "red":
        return ""
    figure = f"{metric.title} {estimate.value:.2f}"
    doubt = f"{chosen.name} is not shown to be better than {chance_of(metric)}. " if chosen.learnt is False else ""
    if estimate.low is None or estimate.high is None:
        few = f": {len(chosen.tests)} test sets have no interval" if 1 < len(chosen.tests) < LEAST_RUNS else ""
        return f"{doubt}On test it has {figure}; how far that holds is not known{few}.{flattered(choice)}"
    bounds = f"between {estimate.low:.2f} and {estimate.high:.2f} (95%)"
    return f"{doubt}On new images like these expect {figure}, {bounds}.{flattered(choice)}"


def flattered(choice: Choice) -> str:
    """Say, to follow figures on test, that they are a little too good where the test images chose the attempt."""
    return f" The same test images chose {choice.name}: its figures are a little too good." if choice.by_test else ""


def _next(chosen: Attempt, light: Light, comparison: Comparison) -> str:
    """Say what to do next: of an open comparison the verdict's advice, which has figures."""
    if light == "red":
        return "Next: see that one attempt learns at all, before attempts are compared."
    if len(comparison.compared) == 1 and light == "green":
        return f"Next: compare it with another attempt (-m attempt={chosen.name},NAME cv.folds=5)."
    if light == "green":
        return "Next: judge it on images of another day or batch before it decides on a line (task=evaluate)."
    folds = "test every image, in folds that each attempt is trained for (cv.folds=5)."
    if comparison.advice and (chosen.name == comparison.best or comparison.reference is not None):
        models = any(pair.models for pair in comparison.pairs) and "cv.folds" not in comparison.advice
        if models:
            return f"Next: {folds} {comparison.advice}"
        return f"Next: {comparison.advice}".replace("Next: To tell", "Next: to tell", 1)
    if any(pair.models for pair in comparison.pairs) or len(chosen.tests) < LEAST_RUNS:
        return f"Next: {folds}"
    return "Next: take the simplest of those that are not shown to differ, or test more images."


def mistakes_of(attempt: Attempt) -> dict[str, Estimate]:
    """Return the shares of each kind of mistake on test, with their intervals, as far as the problem has them."""
    mistakes: dict[str, Estimate] = {}
    for metric in metrics_of(attempt.problem):
        estimate = attempt.estimate(metric.key) if metric.words.mistake else None
        if estimate is None:
            continue
        if metric.sign > 0:  # what is found, and not what is missed
            low, high = (None if bound is None else 1 - bound for bound in (estimate.high, estimate.low))
            estimate = Estimate(1 - estimate.value, low, high)
        mistakes[metric.words.mistake] = replace(estimate, method=_counted(attempt, metric.words.mistake))
    return mistakes


def _counted(attempt: Attempt, kind: str) -> str:
    """Return how many test images are mistaken in one way, ``2 of 63``; empty where the files do not say it.

    Where several runs test an image, each decision counts.
    """
    rows = [row for tested in attempt.on() for row in tested.rows]
    if kind not in MEANING or any("label" not in row or "prediction" not in row for row in rows):
        return ""
    of_kind = [row for row in rows if (row["label"] == GOOD) == (kind == REJECTS)]
    wrong = sum((row["prediction"] == GOOD) != (row["label"] == GOOD) for row in of_kind)
    images = len({image for images in attempt.tests for image in images})
    return f"{wrong} of {len(of_kind)}{' decisions' if len(rows) > images else ''}"


def mistake_of(kind: str, share: Estimate) -> str:
    """Return a share of mistakes in words, ``8.2% of the defects pass as good (5 of 61; 95%: 4.1 to 19.0%)``."""
    text = " ".join(filter(None, (f"{100 * share.value:.1f}%", MEANING.get(kind))))
    bounds = ""
    if share.low is not None and share.high is not None:
        bounds = f"95%: {100 * share.low:.1f} to {100 * share.high:.1f}%"
    beside = "; ".join(filter(None, (share.method, bounds)))
    return f"{text} ({beside})" if beside else text


def likely(attempt: Attempt) -> str:
    """Return the likely reasons why an attempt learnt nothing, from the facts of its runs; empty where none is seen."""
    return ", and ".join(_reasons(attempt.done))


def _reasons(runs: Sequence[RunResult]) -> Iterator[str]:
    if all(run.weights == "random" and run.backbone != "none" for run in runs):
        yield "the network began with random weights (give model.weights)"
    trained = [run for run in runs if run.epochs]
    late = [run for run in trained if (run.best_epoch or 0) >= LATE * run.epochs]
    if trained and 2 * len(late) > len(trained):
        best = f"best epoch {late[0].best_epoch} of {late[0].epochs}"
        yield f"training ended while it still improved ({best}; give trainer.max_epochs)"
    rarest = [min(counts.values()) for run in runs if (counts := run.counts.get("train"))]
    if rarest and min(rarest) < FEW_IMAGES:
        yield f"a class has only {min(rarest)} training image{'s' if min(rarest) != 1 else ''}"


def unsaid(verdict: Sequence[str], headline: Sequence[str]) -> list[str]:
    """Return the sentences of a verdict without those that the first lines end with: a page says them once.

    These are the advice, and that no attempt is shown to be the best.
    """
    lines = [line for line in verdict if not any(first.endswith(line[1:]) for first in headline)]
    if any(first.endswith(UNDECIDED[1:]) for first in headline):
        lines = [line.removeprefix(f"{UNDECIDED} ") for line in lines]
    return lines


def capital(text: str) -> str:
    """Return a text with its first letter as a capital."""
    return text[:1].upper() + text[1:]
