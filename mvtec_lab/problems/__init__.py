"""Problems: what is learnt, a folder with a problem.py each; methods: how, a folder of methods/ with a METHOD each.

Light to import: a configuration is checked without torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal, TypeVar

from mvtec_lab import knobs
from mvtec_lab.checks import validate
from mvtec_lab.config import Config, untested
from mvtec_lab.errors import LabError
from mvtec_lab.problems.base import Method, Problem, Rules, checked_options
from mvtec_lab.registry import Registry

Model = TypeVar("Model", bound=type)
Base = TypeVar("Base")

_TRAINING = (
    "optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum "
    "trainer.max_epochs trainer.patience trainer.precision augment.transforms augment.views"
)
_HERE = Path(__file__).parent
_FOUND = {folder.parent.name: folder.parent for folder in sorted(_HERE.glob("*/problem.py"))}  # every folder with one


def _methods() -> dict[str, str]:
    """Return the places of all methods: a problem's own METHOD, and a METHOD per folder of its ``methods/``."""
    places = {"classifier": f"{__name__}.classification:METHOD"}
    for problem, folder in _FOUND.items():
        names = [module.name for module in iter_modules([str(folder / "methods")])]
        places |= {name: f"{__name__}.{problem}.methods.{name}:METHOD" for name in names}
    return places


METHODS: Registry[Method] = Registry("method", _methods(), require=("problem", "home", "options"))
PROBLEMS: Registry[Problem] = Registry("problem", {name: f"{__name__}.{name}.problem:PROBLEM" for name in _FOUND})
# What is checked before torch is imported; a problem without rules of this kind checks its settings when it is built.
RULES: Registry[Rules] = Registry(
    "rule",
    {name: f"{__name__}.{name}.rules:RULES" for name, folder in _FOUND.items() if (folder / "rules.py").exists()},
)


REGISTERED: dict[str, type] = {}  # classes that this process registered, by method: a script's cannot be imported


def register_method(model: Model) -> Model:
    """Register a class as a method and return it: a decorator. Its attribute ``method`` is the Method, with its name.

    An installed package gives the Method itself as an entry point of ``mvtec_lab.methods``.

    Raises:
        LabError: the class has no ``method``, or its name belongs to another method.
    """
    method = getattr(model, "method", None)
    if not isinstance(method, Method):
        raise LabError(f"{model.__module__}:{model.__qualname__} has no method: give it method = Method(NAME, ...)")
    METHODS.register(method.name, method)
    REGISTERED[method.name] = model
    return model


def class_of(method: Method, base: type[Base]) -> type[Base]:
    """Import the class of a method, a subclass of ``base``.

    Raises:
        LabError: it cannot be imported, or is no subclass.
    """
    origin, (module, _, name) = f"the method {method.name!r} ({method.home})", method.home.partition(":")
    try:
        model = REGISTERED.get(method.name) or getattr(import_module(module), name)
    except Exception as error:  # code of another package may fail in any way
        raise LabError(f"{origin} cannot be imported ({type(error).__name__}: {error})") from error
    if not (isinstance(model, type) and issubclass(model, base)):
        raise LabError(f"{origin} is no {method.problem} model: derive it from {base.__module__}.{base.__name__}")
    return model


def settings_of(config: Config) -> dict[str, Any]:
    """Return what the class of a configuration's method takes beside a backbone: its options, and keys of its own."""
    values = knobs.settings(config)
    own = {key.rpartition(".")[2]: values[key] for key in METHODS[config.model.method].keys}
    return {**config.model.options, **own}


def in_full(config: Config) -> Config:
    """Return a configuration with every option of its method that has a value, given or by default.

    A run is made with these and writes them down, so that a default that changes later changes no earlier run.
    """
    options = checked_options(METHODS[config.model.method], config.model.options)
    values = {name: value for name, value in options.items() if value is not None}
    return replace(config, model=replace(config.model, options=values))


def files_of(config: Config) -> dict[str, str | None]:
    """Return the paths of files among the options of a configuration's method, by their keys."""
    method, options = METHODS[config.model.method], config.model.options
    return {f"model.options.{name}": options.get(name) for name, option in method.options.items() if option.file}


def problem_of(method: str) -> Problem:
    """Return the problem that a value of ``model.method`` solves.

    Raises:
        LabError: an unknown method.
    """
    return PROBLEMS[METHODS[method].problem]


def check(config: Config, typed: Collection[str] = frozenset()) -> None:
    """Check every value that can be checked without data, network or torch.

    Args:
        typed: the keys that somebody typed; they must have an effect even where they repeat the default.

    Raises:
        LabError: the first wrong value, with its key and what the key takes; a key that has no effect.
    """
    validate(config)
    if config.verdict.metric is not None:
        from mvtec_lab.evaluation.specs import require_deciding  # and with it NumPy, which a command line rarely needs

        require_deciding(config.verdict.metric)
    method = METHODS[config.model.method]
    for reason in idle(config, typed).values():
        raise LabError(reason)
    checked_options(method, config.model.options)
    rules = _rules_of(method)
    if config.data.tile is not None and rules.untiled:
        raise LabError(f"data.tile={config.data.tile} and model.method={method.name}: {rules.untiled}")
    if untested(config.split) and rules.tested:
        raise LabError(f"split.test=0 and model.method={method.name}: {rules.tested}")
    rules.check(config)
    if method.rules is not None:
        method.rules(config)


def deciding(config: Config) -> str:
    """Return the key of the validation metric by which a search ranks its runs.

    Raises:
        LabError: the settings give no such metric, or the task trains nothing.
    """
    if config.task != "train":
        raise LabError(f"task={config.task} has no validation score to search by: leave out hydra/sweeper")
    return _rules_of(METHODS[config.model.method]).deciding(config)


def idle(config: Config, typed: Collection[str] = frozenset()) -> dict[str, str]:
    """Return the error line of every key that was given and has no effect on a run of this configuration."""
    if config.task not in ("train", "describe"):  # others take their settings from a checkpoint, or need none
        return {}
    values, defaults = knobs.settings(config), knobs.settings(Config())
    defaults |= {f"model.options.{name}": o.default for name, o in METHODS[config.model.method].options.items()}
    return knobs.idle(Config, values, defaults, typed, without_effect(config, typed))


def without_effect(config: Config, typed: Collection[str] = frozenset()) -> dict[str, str]:
    """Return the keys that have no effect on a run of this configuration, each with the reason."""
    method, rules = METHODS[config.model.method], _rules_of(METHODS[config.model.method])
    reasons = dict(rules.without_effect(method))
    if not method.trains:
        reasons |= dict.fromkeys(_TRAINING.split(), "it is fitted once, to the images as they are")
    if not method.backbone:
        without = ["model.backbone", "model.unfreeze", *([] if method.own_weights else ["model.weights"])]
        reasons |= dict.fromkeys(without, "its networks are its own")
    for name in config.model.options.keys() - method.options.keys():
        if them := takers("options").get(name):
            reasons[f"model.options.{name}"] = f"it is an option of {', '.join(them)}"
    resting = {} if method.idle is None else method.idle(config)
    reasons |= {key: why for key, why in resting.items() if key in typed or key.startswith("model.options.")}
    for key, them in takers("keys").items():
        if method.name not in them:
            reasons[key] = f"it is a setting of {', '.join(them)}"
    reasons = {key: f"model.method={method.name}: {why}" for key, why in reasons.items()}
    reasons = knobs.without_effect(Config(), knobs.settings(config)) | reasons
    for key in rules.effective(config):
        reasons.pop(key, None)
    return reasons


def _rules_of(method: Method) -> Rules:
    return RULES[method.problem] if method.problem in RULES else Rules()


def option_kinds(name: str) -> set[type]:
    """Return the kinds of value that options of this name take."""
    return {METHODS[method].options[name].kind for method in takers("options").get(name, ())}


def takers(part: Literal["options", "keys"]) -> Mapping[str, list[str]]:
    """Return every option, or every key that some methods alone take, by its name, with the methods that take it."""
    methods: dict[str, list[str]] = {}
    for method in METHODS.names():
        for name in getattr(METHODS[method], part):
            methods.setdefault(name, []).append(method)
    return methods
