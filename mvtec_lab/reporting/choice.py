"""Say which attempt to use, by what the test shows and what validation chose: of one product, or over several.

The first lines of both ask here, and so do their verdicts: the same result has the same colour and word everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mvtec_lab.reporting.pairs import Pair
from mvtec_lab.reporting.products import ProductsPair

Light = Literal["green", "amber", "red"]
AnyPair = Pair | ProductsPair
Side = tuple[str, AnyPair]  # another attempt, and the pair with it

CHOSEN = {True: ", which validation chose", False: "; they were validated on different images"}  # Contest.alike
AGAINST = ", against validation"  # of what is shown, where validation chose another attempt
UNDECIDED = "No attempt is shown to be the best."
_NONE = f"{UNDECIDED[0].lower()}{UNDECIDED[1:]}"


@dataclass(frozen=True)
class Choice:
    """Hold which attempt to use.

    Args:
        light: green where the tests show what is said, amber where they leave it open, red where nothing is to be used.
        word: beside the light.
        use: which attempt to use, in a sentence.
        name: the attempt.
        by_test: whether the test images chose it, so that its figures on them are a little too good.
    """

    light: Light
    word: str
    use: str
    name: str
    by_test: bool = False


class Sides(NamedTuple):
    """Hold the attempts that one was compared with; of each kind that with the highest figure on test comes first."""

    beaten: list[Side]  #: it is shown to be better than these
    level: list[Side]  #: it is not shown to differ from these
    lost: list[Side]  #: it is shown to be worse than these


def sides(name: str, pairs: Sequence[AnyPair]) -> Sides:
    """Return the attempts that one of some pairs was compared with."""
    mine = [pair for pair in pairs if name in (pair.first, pair.second) and pair.difference is not None]
    mine.sort(key=lambda pair: pair.lead_of(name))
    different = [(_other(name, pair), pair) for pair in mine if pair.different]
    return Sides(
        [side for side in different if side[1].lead_of(name) > 0],
        [(_other(name, pair), pair) for pair in mine if not pair.different],
        [side for side in different if side[1].lead_of(name) <= 0],
    )


def ahead(name: str, pairs: Sequence[AnyPair], ranked: Collection[str]) -> bool:
    """Tell whether an attempt is shown to be better than all that it was compared with, every ranked rival included."""
    beaten, level, lost = sides(name, pairs)
    if not beaten or level or lost:
        return False
    return _rivals(name, pairs) & {*ranked} <= {other for other, _ in beaten}


def _rivals(name: str, pairs: Sequence[AnyPair]) -> set[str]:
    """Return the attempts that one is to be compared with, whether they could be compared or not."""
    return {_other(name, pair) for pair in pairs if name in (pair.first, pair.second)}


def _other(name: str, pair: AnyPair) -> str:
    return pair.second if pair.first == name else pair.first


def unlearnt(names: Sequence[str], why: str, products: int = 0) -> Choice:
    """Return the choice where no attempt is shown to have learnt anything.

    Args:
        names: of the attempts.
        why: the likely reason; empty: none is seen.
        products: as ``Contest`` has it.
    """
    who = names[0] if len(names) == 1 else f"any of these {len(names)} attempts"
    shown = "on no product is it shown" if products else "it is not shown"
    because = f" Likely because {why}." if why else ""
    return Choice("red", "Nothing learnt", f"Do not use {who}: {shown} that anything was learnt.{because}", names[0])


def alone(name: str, learnt: bool, chance: str, products: int = 0) -> Choice:
    """Return the choice of a single attempt.

    Args:
        name: of the attempt.
        learnt: whether it is shown to be better than chance, on each product.
        chance: in words.
        products: as ``Contest`` has it.
    """
    on, each = (f" on {products} products", " on each of them") if products else ("", "")
    if learnt:
        use = f"{name}, the only attempt{on}, is shown to be better than {chance}{each}."
        return Choice("green", "Learnt", use, name)
    what = f"it is not shown to be better than {chance}{each}" if on else "nothing shows what its figure is worth"
    return Choice("amber", "Open", f"{name} is the only attempt{on}, and {what}.", name)


@dataclass(frozen=True)
class Contest:
    """Hold what decides between attempts.

    Args:
        best: the one that validation chose; None only where there is a reference.
        pairs: of the attempts, those that could not be compared included.
        names: of all attempts.
        ranked: the names of those that validation chose among.
        alike: tells whether an attempt was validated on the same images as the best, by its name.
        reference: the attempt that every pair has, which is in use; None: all pairs are compared.
        products: over which the attempts are compared; 0: on a single one.
    """

    best: str | None
    pairs: Sequence[AnyPair]
    names: Collection[str]
    ranked: Collection[str]
    alike: Callable[[str], bool]
    reference: str | None = None
    products: int = 0

    @property
    def overruling(self) -> list[Side]:
        """Return the ranked attempts that the test shows to be better than the best; none beside a reference."""
        if self.best is None or self.reference is not None:
            return []
        return [side for side in sides(self.best, self.pairs).lost if side[0] in self.ranked]

    def choice(self) -> Choice:
        """Return which attempt to use."""
        if self.reference is not None:
            return self._beside(self.reference)
        assert self.best is not None
        best, where = self.best, self._where
        beaten, _, lost = sides(best, self.pairs)
        if lost:
            name, pair = next((side for side in lost if ahead(side[0], self.pairs, self.ranked)), lost[0])
            model, known, alike = _model(name, pair), name in self.ranked, self.alike(name)
            shown = f"{where}it is shown to be better on test than {best}{CHOSEN[alike] if known else ''}"
            if not ahead(name, self.pairs, self.ranked):
                return Choice("amber", "Open", f"Use {model} if {self._has_to}: {shown}; {_NONE}", name, True)
            word = _shown(pair) + (AGAINST if known and alike else "")
            return Choice("green", word, f"Use {model}: {shown}.", name, True)
        if ahead(best, self.pairs, self.ranked):
            others = f"all {len(beaten)} others" if len(beaten) > 1 else beaten[0][0]
            others = "all that it is compared with" if 1 < len(beaten) < len(self.names) - 1 else others
            pair = _of_models(beaten)
            use = f"Use {_model(best, pair)}: {where}it is shown to be better than {others}."
            return Choice("green", _shown(pair), use, best)
        of = len(_rivals(best, self.pairs))
        some = f", and is shown to be better than {len(beaten)} of the {of} others" if beaten else ""
        use = f"Use {best} if {self._has_to}: {where}it is the best on validation{some}; {_NONE}"
        return Choice("amber", "Open", use, best)

    def _beside(self, reference: str) -> Choice:
        """Return the choice where every attempt is compared with one that is in use."""
        worse, level, better = sides(reference, self.pairs)
        where = self._where
        if better:
            name, pair = next((side for side in better if side[0] == self.best), better[0])
            use = f"Use {_model(name, pair)}: {where}it is shown to be better"
            if name == self.best:
                return Choice("green", _shown(pair), f"{use} than {reference}.", name)
            against = self.best is not None and self.alike(name)
            chosen = CHOSEN[True] if reference == self.best else f"; validation chose {self.best}"
            use = f"{use} on test than {reference}{chosen if against else ''}."
            return Choice("green", _shown(pair) + (AGAINST if against else ""), use, name, True)
        if worse and not level:
            others = worse[0][0] if len(worse) == 1 else f"all {len(worse)} others"
            pair = _of_models(worse)
            use = f"Stay with {_model(reference, pair)}: {where}it is shown to be better than {others}."
            return Choice("green", _shown(pair), use, reference)
        use = f"Stay with {reference}: {where}no other attempt is shown to be better."
        return Choice("amber", "Open", use, reference)

    @property
    def _where(self) -> str:
        return f"over {self.products} products " if self.products else ""

    @property
    def _has_to(self) -> str:
        return f"one has to be chosen {'for all products' if self.products else 'now'}"


def _of_models(some: Sequence[Side]) -> AnyPair:
    """Return a pair that is about the models that were trained here, if there is one."""
    return next((pair for _, pair in some if pair.models), some[0][1])


def _model(name: str, pair: AnyPair) -> str:
    return f"the model of {name} that was trained here" if pair.models else name


def _shown(pair: AnyPair) -> str:
    return "Shown for these models" if pair.models else "Shown"
