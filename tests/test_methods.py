"""What a method says of itself in its folder is what its class takes and does; saying it needs no torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ONE_CLASS_METHODS

from mvtec_lab.errors import LabError
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.base import checked_options

OPTIMISER = {"optimizer", "lr", "weight_decay", "momentum"}


def test_every_folder_is_a_method() -> None:
    assert set(METHODS.names()) >= {"classifier", *ONE_CLASS_METHODS}
    with pytest.raises(LabError, match="unknown method 'patchcor': did you mean patchcore"):
        _ = METHODS["patchcor"]


@pytest.mark.parametrize("name", ONE_CLASS_METHODS)
def test_a_method_is_what_its_class_is(name: str) -> None:
    method = METHODS[name]
    module, _, attribute = method.home.partition(":")
    model = getattr(import_module(module), attribute)
    taken = set(inspect.signature(model).parameters)
    assert taken - OPTIMISER - {"backbone", "weights", "image_size"} == set(method.options)
    assert ("backbone" in taken, model.trains, model.draws) == (method.backbone, method.trains, method.draws)
    assert method.name == name


def test_methods_are_known_without_torch() -> None:
    code = (
        "import sys; from mvtec_lab.problems import METHODS; [METHODS[n] for n in METHODS.names()]; "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("patchcore", {"coreste": 0.1}, "unknown option of patchcore 'coreste': did you mean coreset"),
        ("draem", {"coreset": 0.1}, "model.method=draem has no options: leave out model.options.coreset"),
        ("patchcore", {"coreset": 0.0}, "model.options.coreset=0.0 is out of range: give a number above 0, up to 1"),
        ("patchcore", {"coreset": float("nan")}, "model.options.coreset=nan is out of range"),
        ("memae", {"slots": 1}, "model.options.slots=1 is out of range: give 2 or more"),
        ("nearest", {"neighbours": 2.5}, "model.options.neighbours=2.5 is not a whole number: good images"),
        ("padim", {"dimensions": True}, "model.options.dimensions=True is not a whole number"),
        ("spade", {"layers": "layer2"}, r"model.options.layers=layer2 is not names in brackets, \[a,b\]"),
        ("autoencoder", {"reconstruction": "l1"}, "unknown model.options.reconstruction 'l1': known are l2, ssim"),
    ],
)
def test_a_wrong_option_is_one_line(method: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(LabError, match=says):
        checked_options(METHODS[method], options)


def test_an_option_that_is_not_given_has_its_default() -> None:
    assert checked_options(METHODS["memae"], {"latent": None, "slots": 50}) == {"latent": 64, "slots": 50}
    assert checked_options(METHODS["patchcore"], {"coreset": 1}) == {"layers": None, "coreset": 1}
