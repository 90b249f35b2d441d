"""Fill a data root from an archive: download with resume, verify, and unpack without leaving half a category."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mvtec_lab.data.annotations.reading import PARTS
from mvtec_lab.data.listing import ARCHIVES, EXTENSIONS
from mvtec_lab.errors import LabError, disk_full, redacted

log = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without a byte: more than a slow mirror needs to wake up
_TRIES = 3  # in a row without a new byte; a connection that makes progress may drop any number of times
_PARTS = ("train", "test", "ground_truth")  # the folders of a category; the rest of an archive is left out
_LISTS = (".csv", ".json", ".txt", ".yaml", ".yml", ".names")  # lists and annotations beside images
# What an archive may unpack to: its own size a few times over, as PNG and JPEG hardly shrink and plain BMP does by ten,
# and as much as a small archive of blank images may need.
_TIMES, _LEAST = 20, 1 << 30
_MOST = 1_000_000  # files; MVTec AD, all of it, has 7,000
_PAUSE = 1.0  # seconds before the second try, doubled for the third
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError)


class _DroppedError(Exception):
    """Say that the connection failed in a way that another try may cure."""


def fetch_archive(source: str, root: Path, *, sha256: str | None = None) -> None:
    """Unpack an archive (tar, tar.gz, tar.xz, tar.bz2, zip) of category folders into ``root``.

    ``source`` is an http(s) or file URL or a local path. A download rests in ``<root>/<name>.part`` until it is
    unpacked, and an interrupted one is continued if the server still has the same file. A folder that wraps the
    category folders is left out; what already lies in ``root`` is kept. Of each category only train/, test/ and
    ground_truth/ are unpacked. Without ``sha256`` the digest is
    logged, with a warning. Only one process at a time may fill the same ``root``.

    Raises:
        LabError: the source cannot be fetched, has another digest than ``sha256``, is damaged or holds an unsafe
            member, or ``root`` cannot be written. Nothing half-unpacked is left behind.
    """
    _fetch(source, root, sha256, lambda content: _move_categories(content, source, root))


def fetch_product(source: str, root: Path, category: str | None, *, sha256: str | None = None) -> None:
    """Unpack an archive of a product of any layout into ``root/category``, or into ``root`` where there is no category.

    Folders that wrap the product are left out; images, lists and annotations are unpacked, and no other or hidden
    files. Where ``root`` is missing or empty, whatever lies beside the category is unpacked as well: some data sets
    keep their lists there. A download rests beside ``root``. Otherwise as ``fetch_archive``.

    Raises:
        LabError: as ``fetch_archive``; the archive has no such category.
    """

    def move(content: Path) -> None:
        while not (category and (content / category).is_dir()):
            inside = list(content.iterdir())
            if not _wraps(inside):
                break
            content = inside[0]
        if category and not (content / category).is_dir():
            names = ", ".join(sorted(path.name for path in content.iterdir())[:8]) or "nothing"
            raise LabError(f"{source} has no folder {category!r}: it holds {names}: correct data.category")
        if category and root.is_dir() and any(root.iterdir()):
            (content / category).rename(root / category)
            return
        if root.is_dir():
            root.rmdir()
        content.rename(root)

    _fetch(source, root.parent, sha256, move, keep=_is_of_product)


def _wraps(inside: Sequence[Path]) -> bool:
    """Tell whether a single folder is all there is, with neither images in it nor the name of a part."""
    alone = len(inside) == 1 and inside[0].is_dir() and inside[0].name.lower() not in PARTS
    return alone and not any(path.suffix.lower() in EXTENSIONS for path in inside[0].iterdir())


def _is_of_product(parts: Sequence[str], is_file: bool) -> bool:
    """Tell whether a file or a folder may belong to a product's images, by the parts of its path."""
    if any(part.startswith(".") for part in parts):
        return False
    return not is_file or PurePosixPath(parts[-1]).suffix.lower() in (*EXTENSIONS, *_LISTS)


def _fetch(
    source: str,
    root: Path,
    sha256: str | None,
    move: Callable[[Path], None],
    keep: Callable[[Sequence[str], bool], bool] = lambda parts, is_file: True,
) -> None:
    """Download, verify and unpack an archive beside its final place.

    Args:
        root: where a download rests, and what is unpacked before it is moved.
        move: moves what was unpacked, a folder, to its place.
        keep: tells whether a file or a folder is unpacked, by the parts of its path, and whether it is a file.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise LabError(f"data.sha256={sha256} is not a SHA-256 digest: give its 64 hexadecimal digits, or null")
    remote = re.match(r"https?://", source, re.IGNORECASE) is not None
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_interactive,
    )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with progress:
            archive = _download(source, root, progress) if remote else _local(source)
            try:
                _verify(archive, source, sha256, progress)
                _unpack(archive, source, root, progress, move, keep)
            except LabError:
                if remote:  # it is complete but wrong: continuing it would never help
                    _discard(archive)
                raise
        if remote:
            _discard(archive)
    except OSError as error:
        raise disk_full(error, root) or LabError(
            f"{root} cannot be filled from {source} ({error}): free some space, or give another data.root"
        ) from error


def _local(source: str) -> Path:
    path = Path(urllib.request.url2pathname(urlsplit(source).path) if source.startswith("file:") else source)
    path = path.expanduser()
    if path.is_dir():
        raise LabError(f"data.archive={source} is a folder: give data.root={source} if it holds the category folders")
    if not path.is_file():
        raise LabError(f"data.archive={source} does not exist: give an archive's path or its http(s) URL")
    return path


def _download(url: str, root: Path, progress: Progress) -> Path:
    name = PurePosixPath(unquote(re.split("[?#]", url)[0])).name
    part = root / (re.sub(r"[^\w.-]", "_", name) + ".part")
    task = progress.add_task(f"downloading {name}", total=None)
    reached = failures = 0
    while True:
        try:
            _transfer(url, part, progress, task)
            return part
        except _DroppedError as error:
            size = part.stat().st_size if part.exists() else 0
            failures = 0 if size > reached else failures + 1
            reached = max(reached, size)
            if failures == _TRIES:
                raise LabError(
                    f"{url} cannot be downloaded ({error}): check the address and the network and run again (what has "
                    f"arrived is kept), or give data.archive=FILE"
                ) from error
            log.warning("%s: %s; trying again", redacted(url), error)
            time.sleep(_PAUSE * 2 ** max(failures - 1, 0))


def _transfer(url: str, part: Path, progress: Progress, task: TaskID) -> None:
    """Download ``part`` over one connection, to its full length, or as far as it gets (_DroppedError)."""
    known = _read_version(part)
    length = known["length"] if known.get("url") == _digest(url) else 0
    offset = part.stat().st_size if length and part.exists() else 0
    if offset and offset == length:
        return
    with _answer(url, part, offset, known.get("validator")) as response:
        validator = _validator(response)
        if offset and response.status == 206:
            rest = f"bytes {offset}-{length - 1}/{length}"
            if response.headers.get("Content-Range") != rest or validator not in (None, known["validator"]):
                _discard(part)
                raise _DroppedError("the file on the server has changed")
        else:
            offset, length = 0, int(response.headers.get("Content-Length") or 0)
        with part.open("r+b" if offset else "wb") as file:
            if not offset:  # after the old bytes are gone: they must never count as this version
                version = {"url": _digest(url), "length": length, "validator": validator}
                _version_file(part).write_text(json.dumps(version), encoding="utf-8")
            file.seek(offset)
            _copy(response, file, url, length, progress, task)
    size = part.stat().st_size
    if length and size != length:
        raise _DroppedError(f"the connection ended after {size} of {length} bytes")


def _answer(url: str, part: Path, offset: int, validator: str | None) -> Any:
    """Return the server's answer to a request for a file, from a byte on.

    Args:
        validator: of the version that this byte belongs to, where the server named one.
    """
    headers = {"User-Agent": "mvtec_lab"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        status = f"HTTP status {error.code} {error.reason}"
        if error.code == 416:  # the file has become shorter than the part
            _discard(part)
        elif error.code not in (408, 429) and error.code < 500:
            raise LabError(f"{url} answers with {status}: check the address, or give data.archive=FILE") from error
        raise _DroppedError(status) from error
    except http.client.InvalidURL as error:  # whose text quotes the password
        raise LabError(
            f"{url} is not a valid address (port, password or a blank in it?): correct data.archive"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _DroppedError(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _copy(response: Any, file: IO[bytes], url: str, length: int, progress: Progress, task: TaskID) -> None:
    done = file.tell()
    total = f"{length / 1e6:.1f} MB" if length else "unknown size"
    log.info("downloading %s (%s) from byte %d", redacted(url), total, done)
    progress.update(task, total=length or None, completed=done)
    quarter = 4 * done // length if length else 0
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _DroppedError(str(error) or type(error).__name__) from error
        if not chunk:
            return
        file.write(chunk)
        done += len(chunk)
        progress.update(task, completed=done)
        if progress.disable and length and 4 * done // length > quarter:
            quarter = 4 * done // length
            log.info("downloaded %d %% of %s", 25 * quarter, total)


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _version_file(part: Path) -> Path:
    """Return the file that describes the part: digest of its URL (which may hold a password), length, validator."""
    return part.with_name(part.name + ".json")


def _read_version(part: Path) -> dict[str, Any]:
    try:
        return json.loads(_version_file(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _validator(response: Any) -> str | None:
    """Return what If-Range may name: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _verify(archive: Path, source: str, sha256: str | None, progress: Progress) -> None:
    digest = hashlib.sha256()
    with progress.open(archive, "rb", description="verifying") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    actual = digest.hexdigest()
    if sha256 is None:
        log.warning("%s is not verified; its digest is data.sha256=%s", redacted(source), actual)
    elif actual != sha256.lower():
        raise LabError(
            f"{source} has the SHA-256 digest {actual}, not {sha256.lower()}: fetch it again, or correct data.sha256"
        )


def _unpack(
    archive: Path,
    source: str,
    root: Path,
    progress: Progress,
    move: Callable[[Path], None],
    keep: Callable[[Sequence[str], bool], bool],
) -> None:
    """Unpack beside the final place, then move each top-level entry there: a kill leaves no half category."""
    log.info("unpacking %s", redacted(source))
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as temporary:
        content = Path(temporary)
        try:
            _extract(archive, source, content, progress, keep)
        except _DAMAGED as error:
            raise _damaged(source, error) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise _damaged(source, error) from error  # gzip and bz2 call bad data an OSError, but without a number
        move(content)


def _move_categories(content: Path, source: str, root: Path) -> None:
    """Move the category folders of MVTec's layout, and nothing else."""
    while not _is_category(content):
        folders = [entry for entry in content.iterdir() if entry.is_dir()]
        if any(map(_is_category, folders)):
            break
        if len(folders) != 1:
            raise LabError(f"{source} holds no category folder (one with train/ or test/): give another archive")
        content = folders[0]
    whole = _is_category(content)  # train/ and test/ lie at the archive's top: root itself is the product
    for entry in sorted(content.iterdir()):
        if not (entry.name in _PARTS if whole else _is_category(entry)) or entry.name.startswith("."):
            log.info("%s is not a category folder and is left out", entry.name)
        elif (root / entry.name).exists():
            log.info("%s already exists and is kept", root / entry.name)
        else:
            for other in [] if whole else [path for path in entry.iterdir() if path.name not in _PARTS]:
                log.info("%s/%s is left out", entry.name, other.name)
                shutil.rmtree(other) if other.is_dir() else other.unlink()
            entry.rename(root / entry.name)


def _extract(
    archive: Path, source: str, content: Path, progress: Progress, keep: Callable[[Sequence[str], bool], bool]
) -> None:
    """Write every file of an archive below a folder; nothing that lies outside, and not without bound."""
    most, size = max(_LEAST, _TIMES * archive.stat().st_size), 0
    inner: list[str] = []  # archives inside of it
    images = False
    with progress.open(archive, "rb", description="unpacking") as file:
        for count, (name, length, stream) in enumerate(_members(file, source)):
            size += length
            if size > most or count >= _MOST:
                raise LabError(
                    f"{source} unpacks to more than {most / 1e9:.1f} GB or {_MOST:,} files, nothing was "
                    "unpacked: use another archive, or unpack it yourself and give data.root=FOLDER"
                )
            parts = _safe_parts(name, source)
            target = content.joinpath(*parts)
            if parts[:1] == ("__MACOSX",):  # Finder's shadow of every file that it packs
                continue
            if parts and stream is not None:
                inner += [name] * parts[-1].lower().endswith(ARCHIVES)
                images |= parts[-1].lower().endswith(EXTENSIONS)
            if not keep(parts, stream is not None):
                log.info("%s is left out", name)
                continue
            if stream is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream, target.open("wb") as out:
                shutil.copyfileobj(stream, out, _CHUNK)
    if inner and not images:
        more = f" and {len(inner) - 1} more" if len(inner) > 1 else ""
        raise LabError(
            f"{source} holds no image but the archive {inner[0]}{more}, and one inside another is not unpacked: unpack "
            f"the outer one yourself, then give data.archive=.../{PurePosixPath(inner[0]).name}"
        )


def _members(file: IO[bytes], source: str) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yield name, size and content of every file, name, 0 and None of every folder; anything else is refused.

    Contents are copied rather than extracted, so no link, device, owner or permission of an archive takes effect.
    """
    if tarfile.is_tarfile(file):
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                if not (member.isfile() or member.isdir()):
                    raise _unsafe(source, member.name, "is a link or a device")
                yield member.name, member.size, archive.extractfile(member)
            # tarfile stops at a bad header: only a second block of zeros proves that nothing is missing.
            if not archive.fileobj.read(_CHUNK).startswith(bytes(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError("it ends too early")
        return
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(source, info.filename, "is a link or a device")
            yield info.filename, info.file_size, None if info.is_dir() else archive.open(info)


def _safe_parts(name: str, source: str) -> tuple[str, ...]:
    path = PureWindowsPath(name)  # the stricter reading: both slashes separate, and C: is a drive
    if path.anchor or ".." in path.parts:
        raise _unsafe(source, name, "leads out of the target")
    return path.parts


def _unsafe(source: str, name: str, why: str) -> LabError:
    return LabError(f"{source} is unsafe, nothing was unpacked: its member {name!r} {why}; use another archive")


def _damaged(source: str, error: Exception) -> LabError:
    return LabError(f"{source} is not an archive, or is damaged ({error}): fetch it again (tar, tar.gz/xz/bz2 or zip)")


def _is_category(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()
