"""Find new images: a file, a folder, a glob, a list, an archive, a video, a camera, or a folder that is watched.

Light to import: what reads images, and what reads videos, is imported where it reads.
"""

from __future__ import annotations

import csv
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mvtec_lab.data.listing import EXTENSIONS, NO_IMAGES, LeftOut, list_images, natural
from mvtec_lab.errors import LabError, disk_full

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
LISTS = (".txt", ".csv")
SIGNS = "*?["  # of a glob
WANTED = (
    f"an image or a folder of {', '.join(EXTENSIONS)}; a glob, a .zip, a list (.txt, .csv), a video, or 0, a camera"
)
KEPT = "images"  # the folder for what an archive, a video or a camera gives, below the task's own
ELSEWHERE = "elsewhere"  # how the names of listed images begin that do not lie below their list's folder
VERSION = "version"  # size and time of a watched file as it was judged: cameras write over their files
POLL = 0.5  # seconds between two looks at a watched folder: a file that did not change meanwhile is complete
LARGEST, MOST = 1 << 28, 100_000  # bytes of an image in an archive, and images: what is more is no inspection


class Source:
    """Give images that lie on the disk already.

    Args:
        typed: the value of ``source``.
        root: the folder below which images are named.
        images: their paths.
        left_out: other files.
        broken: why images cannot be used, a line each.
    """

    live = False  # it goes on until it is stopped
    waits = False  # its first image may never come

    def __init__(
        self,
        typed: str,
        root: Path,
        images: list[Path] | None = None,
        left_out: LeftOut | None = None,
        broken: list[str] | None = None,
    ) -> None:
        self.typed, self.root, self.images = typed, root, images or []
        self.left_out, self.broken = left_out or {}, broken or []

    def groups(self, folder: Path) -> Iterator[list[Path]]:
        """Yield images in groups, each as soon as it is there.

        Args:
            folder: where images are kept that are no files of their own.
        """
        yield self.images

    def name(self, path: Path) -> str:
        """Return a relative path that names an image: below the source, or below ``elsewhere`` where it lies outside.

        No two images share a name, and none leads out of the folder that it is joined to.
        """
        whole, root = (Path(os.path.abspath(each)) for each in (path, self.root))  # noqa: PTH100 # links untouched
        return (whole.relative_to(root) if whole.is_relative_to(root) else Path(ELSEWHERE, *whole.parts[1:])).as_posix()

    def facts(self, path: Path) -> dict[str, str]:
        """Return what predictions.csv says of an image's file, by column."""
        return {}


def look(typed: str) -> None:
    """Refuse a source that is not there, without looking into it.

    Raises:
        LabError: it is neither a path, a camera's number nor a glob.
    """
    if not (Path(typed).expanduser().exists() or typed.isdecimal() or {*typed} & {*SIGNS}):
        raise LabError(f"source={typed} does not exist: give {WANTED}")


def find(typed: str | None, watch: bool = False, fps: float | None = None) -> Source:
    """Return the source of a value of ``source``.

    Raises:
        LabError: it is none, does not exist, or holds no image.
    """
    if typed is None:
        raise LabError("task=predict needs source=FILE_OR_FOLDER")
    look(typed)
    path = Path(typed).expanduser()
    if watch:
        if not path.is_dir():
            raise LabError(f"watch=true watches a folder, which source={typed} is not: give a folder")
        return Watched(typed, path)
    if path.is_dir():
        return _folder(typed, path)
    if not path.exists():
        return Video(typed, Path(), fps) if typed.isdecimal() else _globbed(typed, path)
    if not path.is_file():
        raise LabError(f"source={typed} is a pipe or another special file: give {WANTED}")
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return Archive(typed, path)
    if suffix in LISTS:
        return _listed(typed, path)
    return Video(typed, path, fps) if suffix in VIDEOS else Source(typed, path.parent, [path])


def _folder(typed: str, path: Path) -> Source:
    from mvtec_lab.data.listing import name_left_out

    listed = list_images(path, deep=True)
    if not listed.images and not listed.unusable:
        left_out = "".join(f"; {line}" for line in name_left_out(listed.left_out, path))
        raise LabError(f"source={typed} holds no image: give {WANTED}{left_out}")
    return Source(typed, path, listed.images, listed.left_out, listed.unusable)


def _globbed(typed: str, pattern: Path) -> Source:
    fixed = next(place for place, part in enumerate(pattern.parts) if {*part} & {*SIGNS})
    root = Path(*pattern.parts[:fixed])
    found = sorted(root.glob("/".join(pattern.parts[fixed:])), key=lambda path: natural(str(path)))
    images = [path for path in found if path.is_file() and path.suffix.lower() in EXTENSIONS]
    if not images:
        raise LabError(f"source={typed} matches no image: give {WANTED}")
    others = [str(path) for path in found if path.is_file() and path.suffix.lower() not in EXTENSIONS]
    return Source(typed, root, images, {NO_IMAGES: others} if others else {})


def _listed(typed: str, path: Path) -> Source:
    """Return the images that a list names, a line each or in a column ``path``; relative ones lie beside it."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file)
                if "path" not in (reader.fieldnames or ()):
                    raise LabError(
                        f"source={typed} has no column path: give a .csv with one, or a .txt with a path a line"
                    )
                names = [row["path"] for row in reader]
            else:
                names = [line.strip() for line in file]
    except (OSError, ValueError, csv.Error) as error:
        raise LabError(f"source={typed} cannot be read ({error}): save it as UTF-8") from error
    images = [path.parent / name for name in dict.fromkeys(names) if name]
    if not images:
        raise LabError(f"source={typed} names no image: give a path a line, or a .csv with a column path")
    special = [image for image in images if image.exists() and not image.is_file()]  # to open a pipe is to wait for it
    broken = [f"{image} is a folder, a pipe or another special file: list images" for image in special]
    return Source(typed, path.parent, [image for image in images if image not in special], broken=broken)


DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, NotImplementedError)  # of a member


class Archive(Source):
    """Give the images of a .zip, which are unpacked below the task's folder."""

    def __init__(self, typed: str, path: Path) -> None:
        super().__init__(typed, path)
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise LabError(f"source={typed} is no zip archive, or damaged ({error}): give {WANTED}") from error
        for member in members:
            place = PureWindowsPath(member.filename)
            if place.anchor or ".." in place.parts:
                raise LabError(f"source={typed} holds {member.filename!r}, which leads out of it: unpack it by hand")
        shown = [m for m in members if not any(part.startswith((".", "__MACOSX")) for part in m.filename.split("/"))]
        self.members = [m for m in shown if PurePosixPath(m.filename).suffix.lower() in EXTENSIONS]
        self.members.sort(key=lambda member: natural(member.filename))
        if len(self.members) > MOST:
            raise LabError(f"source={typed} holds {len(self.members):,} images, more than {MOST:,}: unpack it first")
        if not self.members:
            raise LabError(f"source={typed} holds no image: give {WANTED}")
        if others := [member.filename for member in shown if member not in self.members]:
            self.left_out = {NO_IMAGES: others}

    def groups(self, folder: Path) -> Iterator[list[Path]]:
        self.root = folder / KEPT
        for member in self.members:
            target = self.root / member.filename
            try:
                if target in self.images:
                    raise ValueError("its name is there twice")
                if member.file_size > LARGEST:
                    raise ValueError(f"it unpacks to {member.file_size:,} bytes")
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipfile.ZipFile(self.path) as archive, archive.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
            except (*DAMAGED, OSError) as error:
                if full := disk_full(error, target):
                    raise full from error
                if target not in self.images:
                    with suppress(OSError):  # a name that no file can have
                        target.unlink(missing_ok=True)
                why = error.strerror if isinstance(error, OSError) else error
                self.broken.append(f"{member.filename} of {self.path} cannot be unpacked ({why}): pack it again")
            else:
                self.images.append(target)
        yield self.images


class Video(Source):
    """Give the frames of a video or a camera, each of which is kept as a .png below the task's folder."""

    def __init__(self, typed: str, path: Path, fps: float | None) -> None:
        super().__init__(typed, path)
        self.camera, self.fps = not path.name, fps
        self.live = self.camera

    def _open(self) -> Any:
        import cv2

        capture = cv2.VideoCapture(int(self.typed) if self.camera else str(self.root))
        if not capture.isOpened():
            what = f"camera {self.typed} cannot be opened: is it connected, and free?"
            raise LabError(
                what if self.camera else f"source={self.typed} is no video that OpenCV reads: save it as .mp4"
            )
        return capture

    def groups(self, folder: Path) -> Iterator[list[Path]]:
        import cv2

        capture, stem = self._open(), f"camera{self.typed}" if self.camera else self.root.stem
        try:
            rate = capture.get(cv2.CAP_PROP_FPS)
            step = max(1, round(rate / self.fps)) if self.fps and rate > 0 else 1
            self.root = folder / KEPT
            self.root.mkdir(parents=True, exist_ok=True)
            number = -1
            while capture.grab():
                number += 1
                if number % step:
                    continue
                there, picture = capture.retrieve()
                if not there:
                    self.broken.append(f"frame {number} of source={self.typed} cannot be read: save the video again")
                    continue
                target = self.root / f"{stem}_{number:06}.png"
                coded = cv2.imencode(".png", picture)[1].tobytes()
                try:
                    target.write_bytes(coded)
                except OSError as error:
                    raise disk_full(error, target, len(coded)) or error from error
                yield [target]
        finally:
            capture.release()
        if number < 0:
            raise LabError(f"source={self.typed} has no frame that can be read: save it as .mp4, or give images")


class Watched(Source):
    """Give the images of a folder, and new ones as they come, until somebody stops it.

    Args:
        typed, path: the folder.
        judged: the versions of images, by their absolute paths, that need no look.
    """

    live = waits = True

    def __init__(self, typed: str, path: Path, judged: Mapping[Path, str] | None = None) -> None:
        super().__init__(typed, path)
        self.judged, self.given = judged or {}, dict[Path, tuple[int, int]]()

    def groups(self, folder: Path) -> Iterator[list[Path]]:
        before: dict[Path, tuple[int, int]] = {}
        done = {
            path: stamp
            for path in (list_images(self.root, deep=True).images if self.judged else ())
            if (stamp := _stamp(path)) and _version(stamp) == self.judged.get(path.absolute())
        }
        while True:
            now = {path: stamp for path in list_images(self.root, deep=True).images if (stamp := _stamp(path))}
            ready = [path for path, stamp in now.items() if before.get(path) == stamp != done.get(path)]
            done |= {path: now[path] for path in ready}
            self.given = {path: now[path] for path in ready}
            if ready:
                yield ready
            before = now
            wait()

    def facts(self, path: Path) -> dict[str, str]:
        return {VERSION: _version(self.given[path])}


def wait() -> None:
    """Wait until a watched folder is looked at again."""
    time.sleep(POLL)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file; None where it is gone, or empty: a file that is just begun."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status.st_size else None


def _version(stamp: tuple[int, int]) -> str:
    """Return what tells a file from the same one before and after it was written again."""
    return "-".join(map(str, stamp))
