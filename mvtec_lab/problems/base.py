"""The seam: what differs between problems is said once, by an object of that problem. Light to import."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.knobs import out_of_range

if TYPE_CHECKING:  # torch is paid for by runs, not by --help
    import numpy as np
    from pytorch_lightning import LightningModule
    from torch import Tensor, nn

    from mvtec_lab.config import Config
    from mvtec_lab.data.datamodule import MVTecDataModule
    from mvtec_lab.data.tiles import Window
    from mvtec_lab.engine.model import Model
    from mvtec_lab.engine.run import Judgement, Run

VAL_IS_TEST_MARK = "validation = test: the checkpoint was chosen on the test images, its figures are too good"

_KINDS = {int: "a whole number", float: "a number", str: "a name", list: "names in brackets, [a,b]"}


@dataclass(frozen=True)
class Option:
    """Declare a setting of a method, ``model.options.<name>``; None stands for the default.

    Args:
        kind: int, float, str or list (of names).
        about: what it does, in one line.
        default: the value where none is given; None where the method computes it from the data.
        least, most: its range, both included; ``above``: a bound that it must exceed.
        choices: its values, where there are few.
        file: it is the path of a file, which a run records and a resumed run must find as it was.
    """

    kind: type
    about: str
    default: Any = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: Sequence[Any] = ()
    file: bool = False


@dataclass(frozen=True)
class Method:
    """Declare how a problem is solved: the value of ``model.method``.

    Args:
        name: as in ``model.method``.
        problem: the problem that it solves, a name of ``problems.PROBLEMS``.
        home: ``module:Class`` of its module, which is imported when a run needs it.
        trains: by gradient; False where it is fitted in one pass, or not at all.
        draws: from random numbers, so that another seed gives another model.
        backbone: it takes ``model.backbone`` and ``model.weights``.
        own_weights: it takes ``model.weights`` without a backbone: those of its own network.
        licence: of weights that it brings along itself; empty: it brings none.
        options: what it takes beside them, by name.
        keys: keys of the configuration that it takes and methods which do not name them do not: ``model.sam_weights``.
        beside: a package that it needs and no extra of the lab brings, and the line that installs it.
        rules: raises LabError for settings that the method cannot work with; it is given the whole Config.
        idle: returns the keys that have no effect beside the method's other settings, each with the reason; it is given
            the whole Config. What an attempt's file sets for other runs of it may rest, but not what somebody types.
    """

    name: str
    problem: str
    home: str
    trains: bool = True
    draws: bool = True
    backbone: bool = True
    own_weights: bool = False
    licence: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    keys: Collection[str] = ()
    beside: tuple[str, str] | None = None
    rules: Callable[[Any], None] | None = None
    idle: Callable[[Any], Mapping[str, str]] | None = None


LAYERS = Option(list, "layers of the backbone, by TorchVision's node names: features.6, layer2; null: the method's")
# Features of mirror images are kept as those of the image are, so that more views cost no time in training.
VIEWS = Option(
    int,
    "views that train and are judged together: 1, an image itself; 2, 4, its mirror images; 8, quarter turns too",
    4,
    choices=(1, 2, 4, 8),
)


def checked_options(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of a method by its name: the given value, or the default where none or None is given.

    Raises:
        LabError: an option that the method does not know, or a value of another kind or out of its range.
    """
    for name, value in options.items():
        if name not in method.options:
            if method.options:
                raise unknown(f"option of {method.name}", name, method.options)
            raise LabError(f"model.method={method.name} has no options: leave out model.options.{name}")
        if value is not None:
            _check_option(f"model.options.{name}", value, method.options[name])
    given = {name: value for name, value in options.items() if value is not None}
    return {name: given.get(name, option.default) for name, option in method.options.items()}


def _check_option(key: str, value: Any, option: Option) -> None:
    if option.kind is list:
        right = isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value)
    else:
        kinds = (int, float) if option.kind is float else option.kind
        right = isinstance(value, kinds) and not isinstance(value, bool)
    if not right:
        raise LabError(f"{key}={value} is not {_KINDS[option.kind]}: {option.about}")
    if option.choices and value not in option.choices:
        if option.kind is str:
            raise unknown(key, value, option.choices)
        raise LabError(f"{key}={value}: give one of {', '.join(map(str, option.choices))}")
    if option.kind not in (int, float):
        return
    if wanted := out_of_range(value, option.least, option.most, option.above):
        raise LabError(f"{key}={value} is out of range: give {wanted}")


@dataclass(frozen=True)
class Prediction:
    """Hold what a model says of one new image.

    Args:
        row: of predictions.csv, after ``path``; ``prediction`` is a part of it.
        caption: below the image on a sheet, and beside its path in the terminal.
        heat: scores of parts [h, w], any size, that cover the image's square; None: the method does not localise.
        files: given the image in its own size, uint8 RGB [H, W, 3], returns the files to write for it by the ending of
            their names: pictures, uint8 [H, W, 3] or [H, W], or text. ``.jpg`` is also shown on the sheet.
        boxes: [K, 5], x0, y0, x1, y1 in pixels of the square image and a score, the highest first, on the scale of the
            model's threshold; None: the method finds none.
        sized: given the image's own size (H, W), returns the prediction whose row and caption tell of its files; None:
            they say the same of every size.

    ``heat`` and ``boxes`` say where a defect is: either makes the model's runs prompts for a method that takes some.
    Beside ``heat`` the row has the image's ``score``.
    """

    row: Mapping[str, Any]
    caption: str
    heat: np.ndarray | None = None
    files: Callable[[np.ndarray], Mapping[str, np.ndarray | str]] | None = None
    boxes: np.ndarray | None = None
    sized: Callable[[tuple[int, int]], Prediction] | None = None


def check_supervised(config: Config) -> None:
    """Refuse a split for one-class methods, and folds outside of a sweep, to a method that learns from defects.

    Raises:
        LabError: the split has no defects to learn from, or cv.folds makes no sweep.
    """
    method, protocol = config.model.method, config.split.protocol
    if protocol in ("one_class", "test_folder"):
        raise LabError(
            f"model.method={method} and split.protocol={protocol}: only a one-class method learns from good images "
            "alone: give model.method=patchcore, say"
        )
    check_folds(config)


def check_folds(config: Config) -> None:
    """Refuse cv.folds outside of a sweep.

    Raises:
        LabError: it makes no sweep.
    """
    folds = config.cv.folds
    if folds is not None and config.split.protocol != "kfold":
        raise LabError(f"cv.folds={folds} makes a sweep: give -m as well (python -m mvtec_lab -m ...)")


@dataclass(frozen=True)
class Rules:
    """Say which settings a problem takes, before torch is imported: ``RULES`` in the rules.py of its folder.

    Args:
        check: raises LabError for settings that the problem cannot work with.
        without_effect: returns the keys that have no effect with a method, each with the reason.
        effective: returns the keys that have an effect although their conditions in config.py are not met.
        deciding: returns the key of the validation metric by which a search ranks its runs; raises LabError if the
            settings give no such metric.
        untiled: why it cannot judge an image by tiles of it (``data.tile``), and what to do; empty where it can.
        tested: why it cannot do without test images (``split.test=0``), and what to do; empty where it can.
    """

    check: Callable[[Config], None] = lambda config: None
    without_effect: Callable[[Method], Mapping[str, str]] = lambda method: {}
    effective: Callable[[Config], Collection[str]] = lambda config: ()
    deciding: Callable[[Config], str] = lambda config: config.trainer.monitor.rpartition("/")[2]
    untiled: str = "it judges images as a whole: leave it out"
    tested: str = "it is judged on test images: give a small share, split.test=0.05"


def require_onnx(model: Model) -> None:
    """Refuse to export a model whose method has no ONNX file; the module's ``no_onnx`` says why.

    Raises:
        LabError: it has none.
    """
    if model.module.no_onnx:
        raise LabError(f"model.method={model.method} has no ONNX file: {model.module.no_onnx}: use task=predict")


class Problem:
    """Define what is learnt: classification, anomaly ... Each problem is one object, ``PROBLEM`` in its folder.

    Tasks and the engine ask it and never test its name. A new problem is a folder with a problem.py that holds a
    subclass of this one (or an entry point in ``mvtec_lab.problems``), its ``Method``s, and its metrics in
    ``evaluation.specs``. What is asked before torch is imported stands apart: ``Rules``, and the methods.
    """

    name: str
    targets: Sequence[str] = ()  # what items have beside image and label: ``mask``, ``boxes``, as in MVTecDataset
    good_alone: bool = False  # it learns from good images alone, in a cross-validation as well

    def targets_of(self, method: str) -> Sequence[str]:
        """Return what items have beside image and label for a method; by default ``targets``."""
        return self.targets

    def known_defects(self, config: Config) -> int:
        """Return how many defects of each type, at most, a problem that is ``good_alone`` learns from nevertheless."""
        return 0

    def single_device(self, config: Config) -> str | None:
        """Return why these settings run on one device only; None where several can share the work."""
        return None

    def learns_from(self, config: Config) -> Sequence[str]:
        """Return the splits from whose images a model learns: what validates is not learnt, by default."""
        return ("train",)

    def findings(self, config: Config) -> list[str]:
        """Return what the settings take from the worth of the figures, a line each; ``audit=strict`` refuses them."""
        return [VAL_IS_TEST_MARK] if config.split.val_is_test else []

    def validates_by(self, config: Config) -> str:
        """Return what judges images that were learnt where these validate, "inner folds"; empty: those of val do."""
        return ""

    def chosen_on_val(self, config: Config) -> str:
        """Return what a run chooses by its validation images, and by which of their metrics; empty: nothing by them."""
        return "the choice among attempts"

    def chosen_on_test(self, config: Config) -> list[str]:
        """Return a warning for what a training run chooses on its test images, beside ``val_is_test``."""
        return []

    def marks(self, config: Config, data: MVTecDataModule) -> list[str]:
        """Return further warnings that are known before training, a line each."""
        return []

    def rehearse(self, config: Config, data: MVTecDataModule) -> None:
        """Refuse ahead what a run would be refused for later, without training.

        Raises:
            LabError: what the run would raise.
        """

    def normalisation(self, config: Config) -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and std of RGB in [0, 1] by which images are normalised: what the backbone's weights expect."""
        from mvtec_lab.models.weights import normalisation

        return normalisation(config.model.backbone, config.model.weights)

    def classes(self, data: MVTecDataModule) -> list[str]:
        """Return the names of what is predicted, in the order of their indices."""
        return data.classes

    def counts(self, data: MVTecDataModule) -> dict[str, dict[str, int]]:
        """Return the images of each split by class."""
        return data.counts()

    def build(self, config: Config, data: MVTecDataModule, weights: str | None) -> Model:
        """Return a new model.

        Args:
            weights: ``model.weights``, or None where random ones stand in.

        Raises:
            LabError: settings, weights or data that do not fit.
        """
        raise NotImplementedError

    def restore(self, content: Mapping[str, Any]) -> LightningModule:
        """Return the module of a checkpoint's content, in eval mode on the CPU.

        Raises:
            Exception: whatever shows that the content is none of this version's.
        """
        raise NotImplementedError

    def fit(self, run: Run) -> None:
        """Train or fit ``run.model``, with ``run.build_trainer`` and ``run.fit`` where it is trained by gradient."""
        raise NotImplementedError

    def judge(self, run: Run) -> Judgement:
        """Judge ``run.model`` on validation and test images, after ``fit`` or after loading a checkpoint.

        What belongs into result.json beside the metrics goes into ``run.result``.
        """
        raise NotImplementedError

    def to_judge(self, config: Config, model: Model) -> Config:
        """Return the configuration of the data that a loaded model is judged on: by default, as it is given."""
        return config

    def outputs(self, model: Model, images: Tensor) -> list[Mapping[str, Tensor]]:
        """Return what the network gives of each normalised image [N, 3, S, S], by name, on the CPU.

        The names are those of ``exported``, whose file gives the same, and the tensors lack the axis of images. It may
        leave out what ``predictions`` does not read.

        Raises:
            LabError: some are NaN or infinite.
        """
        raise NotImplementedError

    def predictions(self, model: Model, outputs: Sequence[Mapping[str, Tensor]]) -> list[Prediction]:
        """Return what outputs mean, those of the network or of its ONNX file: a prediction for each image."""
        raise NotImplementedError

    def predict(self, model: Model, images: Tensor) -> list[Prediction]:
        """Judge new images [N, 3, S, S], normalised."""
        return self.predictions(model, self.outputs(model, images))

    def embed(self, model: Model, images: Tensor) -> Tensor | None:
        """Return features [N, D] of normalised images [N, 3, S, S] that training did not change; None: there are none.

        By them ``engine.unknown`` tells images that are unlike all of training.
        """
        return None

    def prediction_of_tiles(
        self, model: Model, outputs: Sequence[Mapping[str, Tensor]], windows: Sequence[Window]
    ) -> Prediction:
        """Judge an image by its tiles, in a problem whose ``Rules`` are not ``untiled``; ``heat`` covers the image.

        Args:
            outputs: of each tile, as ``outputs`` gives them.
            windows: where they lie.
        """
        raise NotImplementedError

    def exported(self, model: Model) -> nn.Module:
        """Return the network that task=export writes.

        It takes normalised images [N, 3, S, S], for any N, and returns a tuple of tensors [N, ...]. Its attribute
        ``outputs`` names them; there may be more names than tensors. Further plain values for the file's metadata
        may stand in an attribute ``about``.

        Raises:
            LabError: the problem's models cannot be exported.
        """
        raise LabError(
            f"model.method={model.method} cannot be exported: models of {self.name} are used by the lab alone"
        )

    def conclude(self, model: Model, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return what to say below the predictions of new images, a line each."""
        return []
