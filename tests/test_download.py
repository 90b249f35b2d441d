"""Archives come in whole, verified and safely, or not at all: a real server on this machine, small real archives."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mvtec_lab.data import download
from mvtec_lab.data.download import fetch_archive, fetch_product
from mvtec_lab.errors import LabError

NOISE = np.random.default_rng(0).bytes(200_000)  # does not compress: archives are larger than what a drop lets through
FILES = {
    "bottle/train/good/000.png": NOISE,
    "bottle/test/crack/000.png": b"crack",
    "bottle/ground_truth/crack/000_mask.png": b"mask",
    "cable/test/good/000.png": b"cable",
    "cable/test/good/note.txt": b"hello",
}


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz", extra: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if extra is not None:
            archive.addfile(extra)
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(root: Path) -> dict[str, bytes]:
    """Every file below root; folders without files count as well."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
    empty = {name: b"" for name, path in found.items() if path.is_dir() and not any(path.iterdir())}
    return empty | {name: path.read_bytes() for name, path in found.items() if path.is_file()}


class Server(ThreadingHTTPServer):
    """Serves one payload; what it supports and when it hangs up is set by the test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.payload = tar_bytes(FILES)
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.honest = True  # False: continue whatever If-Range says, as simple servers do
        self.drops: list[int] = []  # hang up after so many bytes, one entry a request
        self.statuses: list[int] = []  # answer with this status, one entry a request
        self.starts: list[int] = []  # the first byte of each answer
        self.url = f"http://127.0.0.1:{self.server_port}/data/small.tar.gz?token=1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, start = self.server, 0
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = not server.honest or self.headers.get("If-Range", server.etag) == server.etag
        if asked and server.ranges and same:
            start = int(asked[1])
        server.starts.append(start)
        if start >= len(server.payload):
            self.send_error(416)
            return
        body = server.payload[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.payload) - 1}/{len(server.payload)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.drops.pop(0)] if server.drops else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def interrupt(server: Server, root: Path, after: int = 50_000) -> None:
    """Leave the part file that a download of which the network goes away leaves."""
    server.drops = [after, 0, 0, 0]
    with pytest.raises(LabError, match=r"small\.tar\.gz.* cannot be downloaded .*what has arrived is kept"):
        fetch_archive(server.url, root)
    assert (root / "small.tar.gz.part").stat().st_size == after
    server.drops, server.starts = [], []


def test_download(server: Server, tmp_path: Path) -> None:
    fetch_archive(server.url, tmp_path / "new" / "root", sha256=hashlib.sha256(server.payload).hexdigest().upper())
    assert tree(tmp_path / "new" / "root") == FILES  # no part, no temporary folder
    assert server.starts == [0]


def test_interrupted_download_is_continued_by_the_next_call(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    fetch_archive(server.url, tmp_path)
    assert server.starts == [50_000]
    assert tree(tmp_path) == FILES


def test_dropped_connection_is_continued_in_the_same_call(server: Server, tmp_path: Path) -> None:
    server.drops = [20_000, 0, 30_000, 0, 0, 40_000]  # more drops than tries, but never so many without a new byte
    fetch_archive(server.url, tmp_path)
    assert server.starts == [0, 20_000, 20_000, 50_000, 50_000, 50_000, 90_000]
    assert tree(tmp_path) == FILES


def test_complete_part_is_not_asked_for_again(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "_verify", lambda *_: 1 / 0)  # killed between download and unpacking
        with pytest.raises(ZeroDivisionError):
            fetch_archive(server.url, tmp_path)
    fetch_archive(server.url, tmp_path)
    assert server.starts == [0]
    assert tree(tmp_path) == FILES


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    server.ranges = False
    fetch_archive(server.url, tmp_path)
    assert server.starts == [0]
    assert tree(tmp_path) == FILES


def test_server_without_ranges_that_always_drops_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drops = False, [50_000] * 100
    with pytest.raises(LabError, match=rf"the connection ended after 50000 of {len(server.payload)} bytes"):
        fetch_archive(server.url, tmp_path)


@pytest.mark.parametrize("honest", [True, False], ids=["if-range", "etag"])
def test_changed_file_is_not_glued(server: Server, tmp_path: Path, honest: bool) -> None:
    interrupt(server, tmp_path)
    server.payload, server.etag, server.honest = (
        tar_bytes(FILES | {"cable/test/good/note.txt": b"HELLO"}),
        '"v2"',
        honest,
    )
    fetch_archive(server.url, tmp_path)
    assert tree(tmp_path)["cable/test/good/note.txt"] == b"HELLO"
    assert server.starts == ([0] if honest else [50_000, 0])


def test_changed_length_without_validator_is_not_glued(server: Server, tmp_path: Path) -> None:
    server.etag = None
    interrupt(server, tmp_path)
    server.payload = tar_bytes(FILES | {"cable/test/good/001.png": NOISE})
    fetch_archive(server.url, tmp_path)
    assert server.starts == [50_000, 0]
    assert len(tree(tmp_path)) == len(FILES) + 1


def test_file_shorter_than_the_part(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    server.payload, server.honest = tar_bytes({"bottle/test/good/0.png": b"x"}), False
    fetch_archive(server.url, tmp_path)
    assert tree(tmp_path) == {"bottle/test/good/0.png": b"x"}


def test_part_of_another_url_is_not_continued(server: Server, tmp_path: Path) -> None:
    interrupt(server, tmp_path)
    fetch_archive(server.url.replace("token=1", "token=2"), tmp_path)
    assert server.starts == [0]


def test_http_statuses(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(LabError, match=r"answers with HTTP status 404 Not Found: check the address"):
        fetch_archive(server.url, tmp_path)
    server.statuses = [503, 429]  # busy: worth another try
    fetch_archive(server.url, tmp_path)
    assert tree(tmp_path) == FILES


def test_unreachable(server: Server, tmp_path: Path) -> None:
    server.server_close()
    with pytest.raises(LabError, match=r"^http://127\S+ cannot be downloaded \(.*refused.*\): check the address"):
        fetch_archive(server.url, tmp_path)
    with pytest.raises(LabError, match=r"^http://\[broken cannot be downloaded"):
        fetch_archive("http://[broken", tmp_path)


def test_wrong_digest_unpacks_nothing(server: Server, tmp_path: Path) -> None:
    found = hashlib.sha256(server.payload).hexdigest()
    with pytest.raises(LabError, match=rf"digest {found}, not {'0' * 64}: "):
        fetch_archive(server.url, tmp_path, sha256="0" * 64)
    assert tree(tmp_path) == {}


def test_mistyped_digest_costs_no_download(server: Server, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"data\.sha256=abc is not a SHA-256 digest"):
        fetch_archive(server.url, tmp_path, sha256="abc")
    assert server.starts == []


def test_damaged_download_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.payload = b"<html>please log in</html>"
    with pytest.raises(LabError, match="is not an archive, or is damaged"):
        fetch_archive(server.url, tmp_path)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:xz", "w:bz2", "zip"])
def test_local_archive(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    archive = tmp_path / "any name"  # what it is, is read from its content
    archive.write_bytes(zip_bytes(FILES) if kind == "zip" else tar_bytes(FILES, kind))
    with caplog.at_level(logging.WARNING):
        fetch_archive(str(archive), tmp_path / "root")
    assert f"not verified; its digest is data.sha256={hashlib.sha256(archive.read_bytes()).hexdigest()}" in caplog.text
    assert tree(tmp_path / "root") == FILES
    fetch_archive(archive.as_uri(), tmp_path / "again")
    assert tree(tmp_path / "again") == FILES


def test_wrapping_folder_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({f"mvtec/{name}": data for name, data in FILES.items()}))
    fetch_archive(str(tmp_path / "a.tar"), tmp_path / "root")
    assert tree(tmp_path / "root") == FILES


@pytest.mark.parametrize("name", ["bottle/test/good/0.png", "test/good/0.png"])
def test_category_folder_is_not_taken_off(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes({name: b"x", "__MACOSX/._0.png": b"junk"}))
    fetch_archive(str(tmp_path / "a.zip"), tmp_path / "root")
    assert tree(tmp_path / "root") == {name: b"x"}


def test_existing_category_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(FILES))
    (mine := tmp_path / "root" / "bottle" / "mine.png").parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with caplog.at_level(logging.INFO):
        fetch_archive(str(tmp_path / "a.tar"), tmp_path / "root")
    expected = {name: data for name, data in FILES.items() if not name.startswith("bottle")}
    assert tree(tmp_path / "root") == {"bottle/mine.png": b"mine", **expected}
    assert "bottle already exists and is kept" in caplog.text


@pytest.mark.parametrize("name", ["../evil.png", "bottle/../../evil.png", "/evil.png", "..\\evil.png", "C:\\evil.png"])
@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes], ids=["tar", "zip"])
def test_path_out_of_the_target(tmp_path: Path, pack, name: str) -> None:
    (tmp_path / "a").write_bytes(pack(FILES | {name: b"evil"}))
    with pytest.raises(LabError, match=rf"nothing was unpacked: its member {re.escape(repr(name))} leads out"):
        fetch_archive(str(tmp_path / "a"), tmp_path / "root")
    assert tree(tmp_path) == {"a": (tmp_path / "a").read_bytes(), "root": b""}


@pytest.mark.parametrize(
    "extra",
    [
        link("bottle/link", "../../.."),
        link("bottle/link", "/etc/passwd"),
        link("bottle/link", "../../../secret", tarfile.LNKTYPE),
        link("bottle/link", "", tarfile.FIFOTYPE),
        link("bottle/link", "", tarfile.CHRTYPE),
    ],
    ids=["parent", "absolute", "hard", "fifo", "device"],
)
def test_link_or_device_in_tar(tmp_path: Path, extra: tarfile.TarInfo) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(FILES, extra=extra))
    with pytest.raises(LabError, match=r"its member 'bottle/link' is a link or a device"):
        fetch_archive(str(tmp_path / "a.tar"), tmp_path / "root")
    assert tree(tmp_path / "root") == {}


def test_link_in_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("bottle/link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("bottle/test/good/0.png", b"x")
        archive.writestr(info, "/etc")
    with pytest.raises(LabError, match=r"its member 'bottle/link' is a link or a device"):
        fetch_archive(str(tmp_path / "a.zip"), tmp_path / "root")
    assert tree(tmp_path / "root") == {}


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:xz", "w:bz2", "zip"])
@pytest.mark.parametrize("cut", [True, False], ids=["cut", "flipped"])
def test_damaged_archive(tmp_path: Path, kind: str, cut: bool) -> None:
    data = bytearray(zip_bytes(FILES) if kind == "zip" else tar_bytes(FILES, kind))
    if cut:
        del data[len(data) // 2 :]
    elif kind == "w":
        data[data.index(b"cable")] ^= 1  # in a header: the pixels of a plain tar have no checksum
    else:
        data[len(data) // 2] ^= 255
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(LabError, match=r"is not an archive, or is damaged \(.+\): fetch it again"):
        fetch_archive(str(tmp_path / "a"), tmp_path / "root")
    assert tree(tmp_path / "root") == {}


def test_tar_cut_between_two_members(tmp_path: Path) -> None:
    data = tar_bytes(FILES, "w")
    (tmp_path / "a.tar").write_bytes(data[: data.index(b"cable")])
    with pytest.raises(LabError, match=r"or is damaged \(it ends too early\)"):
        fetch_archive(str(tmp_path / "a.tar"), tmp_path / "root")
    assert tree(tmp_path / "root") == {}


def test_interrupted_unpacking_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(FILES))
    copies = []

    def copy(source, target, length: int) -> None:
        copies.append(target.name)
        if len(copies) == 4:  # bottle is complete by now
            raise KeyboardInterrupt
        target.write(source.read())

    monkeypatch.setattr(download.shutil, "copyfileobj", copy)
    with pytest.raises(KeyboardInterrupt):
        fetch_archive(str(tmp_path / "a.tar"), tmp_path / "root")
    assert tree(tmp_path / "root") == {}


def test_no_category_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes({"photos/0.png": b"x"}))
    with pytest.raises(LabError, match=r"holds no category folder \(one with train/ or test/\)"):
        fetch_archive(str(tmp_path / "a.zip"), tmp_path / "root")
    assert tree(tmp_path / "root") == {}


def test_local_mistakes(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"data\.archive=\S+gone\.zip does not exist: give"):
        fetch_archive(str(tmp_path / "gone.zip"), tmp_path / "root")
    with pytest.raises(LabError, match=r"is a folder: give data\.root="):
        fetch_archive(str(tmp_path), tmp_path / "root")
    (tmp_path / "a.zip").write_bytes(zip_bytes(FILES))
    with pytest.raises(LabError, match=r"a\.zip cannot be filled from .*give another data\.root$"):
        fetch_archive(str(tmp_path / "a.zip"), tmp_path / "a.zip")  # a file where the root should be


def test_full_disk_keeps_the_download(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "copyfileobj", full)
        with pytest.raises(LabError, match=r"No space left on device.*: make room"):
            fetch_archive(server.url, tmp_path)
    assert sorted(tree(tmp_path)) == ["small.tar.gz.part", "small.tar.gz.part.json"]
    fetch_archive(server.url, tmp_path)
    assert server.starts == [0]
    assert tree(tmp_path) == FILES


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes], ids=["tar", "zip"])
def test_only_category_folders_reach_the_root(tmp_path: Path, pack) -> None:
    """Whatever lay beside the categories was put into data.root, which may be a home folder."""
    files = {"mvtec/bottle/test/good/0.png": b"a", "mvtec/bottle/license.txt": b"b", "mvtec/bottle/bin/x.sh": b"c"}
    files |= {"mvtec/.profile": b"d", "mvtec/.config/test/good/x": b"e", "mvtec/bin/x.sh": b"f"}
    archive, root = tmp_path / "a", tmp_path / "root"
    archive.write_bytes(pack(files))
    fetch_archive(str(archive), root)
    assert tree(root) == {"bottle/test/good/0.png": b"a"}
    archive.write_bytes(pack({"test/good/0.png": b"a", ".bashrc": b"b", "run.sh": b"c"}))
    fetch_archive(str(archive), tmp_path / "product")
    assert tree(tmp_path / "product") == {"test/good/0.png": b"a"}


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes], ids=["tar", "zip"])
@pytest.mark.parametrize("fetch", [fetch_archive, lambda source, root: fetch_product(source, root, None)])
def test_an_archive_of_archives_is_one_line(tmp_path: Path, pack, fetch) -> None:
    inner = zip_bytes({"train/good/0.png": b"x"})
    (tmp_path / "all.zip").write_bytes(
        pack({"set/audiojack.zip": inner, "set/bottle.zip": inner, "set/readme.md": b""})
    )
    with pytest.raises(LabError) as error:
        fetch(str(tmp_path / "all.zip"), tmp_path / "data/root")
    assert "all.zip holds no image but the archive set/audiojack.zip and 1 more, and one inside another is not" in str(
        error.value
    )
    assert str(error.value).endswith("then give data.archive=.../audiojack.zip")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    beside = {"set/bottle/test/good/0.png": b"x", "set/raw.zip": inner}  # left out, as a readme is
    (tmp_path / "all.zip").write_bytes(pack(beside))
    fetch(str(tmp_path / "all.zip"), tmp_path / "data/root")
    assert list((tmp_path / "data").rglob("0.png"))


@pytest.mark.parametrize("pack", [tar_bytes, zip_bytes], ids=["tar", "zip"])
def test_an_archive_that_unpacks_to_too_much_leaves_nothing(tmp_path: Path, monkeypatch, pack) -> None:
    archive, root = tmp_path / "bomb", tmp_path / "root"
    monkeypatch.setattr(download, "_TIMES", 0)
    archive.write_bytes(pack({f"bottle/test/good/{i}.png": bytes(100_000) for i in range(20)}))
    monkeypatch.setattr(download, "_LEAST", 1_000_000)
    with pytest.raises(LabError, match=r"unpacks to more than .* nothing was unpacked: use another archive"):
        fetch_archive(str(archive), root)
    assert tree(root) == {}
    monkeypatch.setattr(download, "_LEAST", 1 << 30)
    monkeypatch.setattr(download, "_MOST", 19)
    with pytest.raises(LabError, match="19 files"):
        fetch_archive(str(archive), root)
