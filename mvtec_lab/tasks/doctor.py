"""Run task=doctor: what this machine has and lacks, a line each with the remedy, even where PyTorch is broken."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mvtec_lab.cache import ArrayCache
from mvtec_lab.checks import validate
from mvtec_lab.config import SAMPLE_WEIGHTS, Config
from mvtec_lab.engine.threads import Usage, choose, usage
from mvtec_lab.errors import IncompleteError, LabError
from mvtec_lab.problems import METHODS

INSTALL = "make, or pip install -c constraints.txt -e ."
NVIDIA, AMD = Path("/dev/nvidia0"), Path("/dev/kfd")  # what the drivers make
FOR_DEVELOPERS = ("docs", "test")  # extras that a user of the lab never needs
ROOM = 2e9  # bytes: an epoch's checkpoints, pictures and the cache of a thousand images need less


@dataclass(frozen=True)
class Finding:
    """Hold one line.

    Args:
        name: what was looked at.
        state: what is there.
        remedy: what to do about it; None: all is well.
        stops: whether nothing trains without the remedy.
    """

    name: str
    state: str
    remedy: str | None = None
    stops: bool = False

    def __str__(self) -> str:
        """Return the line as it is printed."""
        mark = "ok" if self.remedy is None else "LACKS" if self.stops else "note"
        return f"{mark:6}{self.name:10}{self.state}" + ("" if self.remedy is None else f": {self.remedy}")


def examine(config: Config, run_dir: str | Path) -> list[Finding]:
    """Print what this machine has for the settings of a configuration, and return it.

    Args:
        config: data, backbone, weights and cache that are wanted; the default run's otherwise.
        run_dir: the directory of a run, on whose disk there has to be room.

    Raises:
        IncompleteError: something is lacking without which nothing trains.
    """
    validate(config)
    began = usage()
    torch = _import("torch")
    findings = [
        _python(),
        _packages(),
        _extras(),
        _torch(torch, _import("torchvision")),
        _device(torch),
        _threads(began),
        _data(config),
        _weights(config),
        _cache(config),
        _disk(Path(run_dir)),
    ]
    for finding in findings:
        print(finding)
    if lacking := [finding.name for finding in findings if finding.stops]:
        raise IncompleteError(f"nothing trains here before this is put right: {', '.join(lacking)}")
    return findings


def _python() -> Finding:
    lab = _of_lab("Version")
    state = f"{platform.python_version()}, {sys.executable}; mvtec_lab {lab[0] if lab else 'as a checkout'}"
    wanted = _of_lab("Requires-Python")
    if wanted and not SpecifierSet(wanted[0]).contains(platform.python_version(), prereleases=True):
        return Finding("Python", state, f"the lab needs {wanted[0]}: make PYTHON=python3.12", stops=True)
    return Finding("Python", state)


def _packages() -> Finding:
    """Compare what is installed with what the lab asks for; a checkout that is not installed asks for nothing."""
    required = [requirement for line in _of_lab("Requires-Dist") if not (requirement := Requirement(line)).marker]
    if not required:
        return Finding("packages", "the lab itself is not installed, it runs from its folder")
    wrong = []
    for requirement in required:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return Finding("packages", "; ".join(wrong), INSTALL, stops=True)
    return Finding("packages", f"all {len(required)} that the lab needs, in versions that it knows")


def _extras() -> Finding:
    """Say which extras are installed, by their packages' versions: nothing is imported."""
    if not (known := sorted({*_of_lab("Provides-Extra")} - {*FOR_DEVELOPERS})):
        return Finding("extras", "not known: the lab itself is not installed, it runs from its folder")
    required = [Requirement(line) for line in _of_lab("Requires-Dist")]

    def complete(extra: str) -> bool:
        of_extra = (r for r in required if r.marker is not None and r.marker.evaluate({"extra": extra}))
        return all(all(map(complete, r.extras)) if r.name == "mvtec_lab" else _there(r) for r in of_extra)

    methods = [METHODS[name] for name in METHODS.names()]
    beside = {m.name.replace("_", "-"): m.beside for m in methods if m.beside and find_spec(m.beside[0]) is None}
    there = [extra for extra in known if extra not in beside and complete(extra)]
    lacking = [extra for extra in known if extra not in (*there, *beside)]
    missing = [f'{", ".join(lacking)} (pip install "mvtec_lab[{",".join(lacking)}]", or those you need)'] * bool(
        lacking
    )
    missing += [f"{name} ({line})" for name, (_, line) in beside.items()]
    state = f"installed: {', '.join(there) or 'none'}"
    return Finding("extras", f"{state}; not installed: {', '.join(missing)}" if missing else state)


def _there(requirement: Requirement) -> bool:
    """Tell whether a package is installed in a version that is asked for."""
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _of_lab(key: str) -> list[str]:
    try:
        return metadata.metadata("mvtec_lab").get_all(key) or []
    except metadata.PackageNotFoundError:
        return []


def _import(name: str) -> Any:
    """Return a module, or the error of importing it, which may be any: a library of the system may be missing."""
    try:
        return __import__(name)
    except Exception as error:
        return error


def _torch(torch: Any, torchvision: Any) -> Finding:
    for name, module in (("torch", torch), ("torchvision", torchvision)):
        if isinstance(module, Exception):
            reason = " ".join(str(module).split())[:200]
            remedy = f"{INSTALL}; torch and torchvision have to be a pair (2.6 and 0.21, 2.14 and 0.29)"
            return Finding("PyTorch", f"{name} cannot be imported ({type(module).__name__}: {reason})", remedy, True)
    return Finding("PyTorch", f"{torch.__version__}, torchvision {torchvision.__version__}")


def _device(torch: Any) -> Finding:
    if isinstance(torch, Exception):
        return Finding("device", "not known without PyTorch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        room = torch.cuda.get_device_properties(0).total_memory / 2**30
        by = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return Finding("device", f"{len(names)} GPU: {', '.join(names)}, {room:.0f} GiB, by {by}")
    if torch.backends.mps.is_available():
        return Finding("device", "Apple's GPU (mps)")
    v, page = torch.version, "the PyTorch of https://pytorch.org/get-started/locally"
    built = f"built for {f'ROCm {v.hip}' if v.hip else f'CUDA {v.cuda}' if v.cuda else 'the CPU'}"
    if shutil.which("nvidia-smi") or NVIDIA.exists():
        remedy = f"install the driver that this CUDA needs, or {page}"
        return Finding("device", f"an NVIDIA GPU that PyTorch, {built}, cannot use", remedy)
    if shutil.which("rocm-smi") or AMD.exists():
        return Finding("device", f"an AMD GPU that PyTorch, {built}, cannot use", f"install {page} for ROCm (Linux)")
    return Finding("device", "CPU; trainings of a frozen backbone take minutes, those of all stages hours")


def _threads(began: Usage) -> Finding:
    return Finding("threads", choose(began).reason)


def _data(config: Config) -> Finding:
    """Look for the data set that is asked for; the built-in sample is drawn where it is missing."""
    d = config.data
    if d.name == "sample":
        root = os.environ.get("MVTEC_ROOT")
        mvtec = f"MVTEC_ROOT={root}" if root else "MVTEC_ROOT is not set: data.root=FOLDER says where MVTec AD lies"
        if root and not Path(root).expanduser().is_dir():
            return Finding("data", f"{mvtec}, which is no folder", "set it to the folder that holds bottle, cable ...")
        return Finding("data", f"the built-in sample; {mvtec}")
    folder = Path(d.root or "", d.category or "").expanduser()
    try:
        from mvtec_lab.data.source import look

        look(d)
    except LabError as error:
        what, _, remedy = str(error).partition(": ")
        return Finding("data", what, remedy or "give data.root=FOLDER", stops=True)
    except ImportError as error:  # a package is missing, which has a line of its own
        return Finding("data", f"{folder}, not looked at ({error})")
    return Finding("data", f"{folder}; task=describe looks into it")


def _weights(config: Config) -> Finding:
    """Look for the pretrained weights that are asked for, where PyTorch's loader keeps them."""
    folder, backbone, wanted = _hub() / "checkpoints", config.model.backbone, config.model.weights
    files = sorted(path.name for path in folder.glob("*.pt*")) if folder.is_dir() else []
    listed = f"{len(files)} file{'s' * (len(files) > 1)} in {folder}" if files else f"no file in {folder}"
    if wanted is None or Path(wanted).expanduser().is_file():
        return Finding("weights", f"model.weights={wanted or 'null'}; {listed}")
    if wanted.upper() == SAMPLE_WEIGHTS:
        return Finding("weights", f"{SAMPLE_WEIGHTS} of {backbone} for the sample, part of the lab; {listed}")
    name = _file_of(backbone, wanted)
    if name is None:  # PyTorch is missing, or somebody else's backbone
        return Finding("weights", listed)
    if name in files:
        return Finding("weights", f"{name} of {backbone}, {listed}")
    remedy = f"a run fetches it; without a network, put it into {folder}, or give model.weights=FILE"
    return Finding("weights", f"{name} of {backbone} is not there, {listed}", remedy)


def _hub() -> Path:
    """Return where ``torch.hub`` keeps files, whether PyTorch can be imported or not."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or Path(cache, "torch"), "hub").expanduser()


def _file_of(backbone: str, weights: str) -> str | None:
    """Return the name of the file that TorchVision publishes; None where it has none, or is not there."""
    try:
        from torchvision.models import get_model_weights

        entry = get_model_weights(backbone)[weights.upper()]
    except Exception:  # as of an import
        return None
    return Path(urlparse(entry.url).path).name


def _cache(config: Config) -> Finding:
    if config.cache.dir is None:
        return Finding("cache", "cache.dir=null: every epoch decodes and computes again", "leave it out")
    cache = ArrayCache(config.cache.dir, config.cache.max_gb)
    if not os.access(_nearest(cache.folder), os.W_OK):
        return Finding("cache", f"{cache.folder.absolute()} cannot be written", "give cache.dir=FOLDER")
    used = sum(entry.bytes for entry in cache.entries()) / 1e9
    return Finding("cache", f"{cache.folder.absolute()}, {used:.2f} of {config.cache.max_gb:g} GB")


def _disk(run_dir: Path) -> Finding:
    free = shutil.disk_usage(_nearest(run_dir)).free
    state = f"{free / 1e9:.1f} GB free for runs in {run_dir.absolute().parent}"
    if free < ROOM:
        return Finding("disk", state, "make room, or give hydra.run.dir=FOLDER and cache.dir=FOLDER on another disk")
    return Finding("disk", state)


def _nearest(path: Path) -> Path:
    path = path.expanduser().absolute()
    return next(place for place in (path, *path.parents) if place.exists())
