"""What a method says of itself in its folder is what its class takes and does; saying it needs no torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from mvtec_lab.config import DETECTORS
from mvtec_lab.errors import LabError
from mvtec_lab.problems import METHODS

OPTIMISER = {"optimizer", "lr", "weight_decay", "momentum"}


def test_every_folder_is_a_method() -> None:
    assert set(METHODS.names()) >= {"classifier", *DETECTORS}
    with pytest.raises(LabError, match="unknown method 'patchcor': did you mean patchcore"):
        _ = METHODS["patchcor"]


@pytest.mark.parametrize("name", DETECTORS)
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
