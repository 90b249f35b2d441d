"""Files from elsewhere are data: archives, run directories and their tables; credentials are written nowhere."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_detection_report import detect
from test_reporting import fabricate

from mvtec_lab import foreign
from mvtec_lab.cli import main
from mvtec_lab.config import Config
from mvtec_lab.engine.origin import origin_of
from mvtec_lab.errors import LabError, redacted
from mvtec_lab.evaluation import anomaly, statistics
from mvtec_lab.reporting import report
from mvtec_lab.results import CONFIG, EXPLANATIONS, HISTORY, MISTAKES, PREDICTIONS, RESULT, read_csv, write_csv

SECRETS = ("hunter2", "tok3n", "s1gn")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hunter2@host:8/a.tar?x=tok3n==&s1gn#s1gn", "https://***@host:8/a.tar?x=***&***#***"),
        ("from s3://tok3n@b/a and http://h/b?k=s1gn: no", "from s3://***@b/a and http://h/b?k=*** no"),
        ("ftp://me:hun/ter2@host/a.zip", "ftp://***@host/a.zip"),
        ("https://host/a.tar", "https://host/a.tar"),
        ("C:/data/a@b?c=d", "C:/data/a@b?c=d"),
    ],
)
def test_urls_keep_no_credential(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert str(LabError(text)) == shown


@pytest.mark.slow
def test_an_archives_token_is_written_nowhere(lab, product: Path, tmp_path: Path, capfd) -> None:
    """config.yaml, TensorBoard's text, logs, errors and names of directories had it."""
    url = "http://me:hunter2@127.0.0.1:9/a.tar?sig=tok3n"
    (product.parent / "other").symlink_to(product)  # two categories, so that the archive is asked for once
    assert lab("data.category=widget", f"data.root={product.parent}", f"data.archive={url}", "hydra.run.dir=run") == 0
    again = ("data.category=widget", f"data.root={product.parent}", f"data.archive={url}", "hydra.run.dir=run")
    assert lab(*again, "resume=true") == 0  # the settings are the run's own, although a part of them was not written
    sweep = (f"data.archive={url},http://me:hunter2@127.0.0.1:9/b.tar?sig=tok3n", "hydra.sweep.dir=sweep")
    assert lab("-m", "data.category=widget", f"data.root={product.parent}", *sweep) == 0
    missing = ("data.category=gone", "data=mvtec", f"data.root={tmp_path / 'none'}")
    assert lab(*missing, "data.category=bottle", "data.archive=http://me:hunter2@nowhere/a.tar") == 2
    shown = "".join(capfd.readouterr())
    assert "is not a valid address" in shown
    files = [path for path in tmp_path.rglob("*") if path.is_file() and product not in path.parents]
    assert any("tfevents" in path.name for path in files)
    for secret in SECRETS:
        assert secret not in shown
        assert not [path for path in files if secret.encode() in path.read_bytes() or secret in str(path)]


def test_formulas_of_a_spreadsheet_are_text_and_read_back(tmp_path: Path) -> None:
    texts = [
        "=cmd|' /C calc'!A0",
        "+1+1",
        "-1+1",
        "@SUM(A1)",
        "\tx",
        "\r=1",
        "'=1",
        "''-a",
        "'quoted",
        "-0.5",
        "a=b",
        "",
    ]
    rows = [{"path": text, "score": -0.5} for text in texts]
    write_csv(tmp_path / "a.csv", rows, ["path", "score"])
    assert [row["path"] for row in read_csv(tmp_path / "a.csv")] == texts
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        cells = [row[0] for row in csv.reader(file)]
    assert [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")] == ["-0.5"]  # a number stays one


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a classifier's run and one of a one-class method, as if they came from elsewhere."""
    for module in (anomaly, statistics):
        monkeypatch.setattr(module, "RESAMPLES", 20)
    fabricate(tmp_path / "runs/base", "base")
    detect(tmp_path / "runs/patchcore", "patchcore")
    picture = tmp_path / "runs/base" / MISTAKES
    (tmp_path / "runs/base" / EXPLANATIONS).write_bytes(picture.read_bytes())
    (tmp_path / "runs/patchcore" / MISTAKES).write_bytes(picture.read_bytes())
    return tmp_path / "runs"


def refused(runs: Path, capsys: pytest.CaptureFixture[str], name: str) -> str:
    """The one line that ``task=compare`` answers with about one of the runs' files; the other run is in the report."""
    capsys.readouterr()
    shutil.rmtree(runs.parent / "compared", ignore_errors=True)
    assert main(["task=compare", f"dirs=[{runs}]", f"hydra.run.dir={runs.parent / 'compared'}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert name in said
    assert any(remedy in said for remedy in ("remove", "leave it out"))
    rows = read_csv(runs.parent / "compared/runs.csv")
    assert {Path(row["run_dir"]).name: row["status"] for row in rows} == {
        run.name: "damaged" if run.name in said.partition(name.rpartition("/")[2])[0] else "completed"
        for run in (runs / "base", runs / "patchcore")
    }
    return said


def edited(path: Path, **changes: Any) -> None:
    """Set values of a result.json by their keys, ``metrics__test__accuracy=7.5``."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *sections, last = key.split("__")
        part = content
        for section in sections:
            part = part[section]
        part[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def bomb(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("counts.npy", "w") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", [RESULT, CONFIG, PREDICTIONS, HISTORY, "pixels.npz"])
def test_no_file_is_followed_out_of_a_runs_directory(runs: Path, tmp_path: Path, capsys, name: str) -> None:
    run = runs / ("patchcore" if name.endswith("npz") else "base")
    (run / name).rename(tmp_path / name)  # a good file, so that the link alone is wrong
    (run / name).symlink_to(tmp_path / name)
    assert "leads out of its run's directory" in refused(runs, capsys, f"{run.name}/{name}")


def test_no_picture_is_followed_out_of_a_runs_directory(runs: Path, tmp_path: Path) -> None:
    for name in (MISTAKES, EXPLANATIONS):
        (runs / "base" / name).rename(tmp_path / name)
        (runs / "base" / name).symlink_to(tmp_path / name)
    assert main(["task=compare", f"dirs=[{runs}]", f"hydra.run.dir={tmp_path / 'compared'}"]) == 0
    page = (tmp_path / "compared/report.html").read_text(encoding="utf-8")
    assert page.count("leads out of its run&#39;s directory") == 2
    assert page.count("image/jpeg") == 1  # that of the other run


def test_links_inside_a_run_and_to_it_are_followed_but_no_folder_below(runs: Path, tmp_path: Path, capsys) -> None:
    (runs / "base" / MISTAKES).rename(runs / "base/sheet.jpg")
    (runs / "base" / MISTAKES).symlink_to("sheet.jpg")
    (tmp_path / "link").symlink_to(runs)  # the user names it
    fabricate(tmp_path / "secret", "secret")
    (runs / "more").symlink_to(tmp_path / "secret")
    assert main(["task=compare", f"dirs=[{tmp_path / 'link'}]", f"hydra.run.dir={tmp_path / 'compared'}"]) == 0
    page = (tmp_path / "compared/report.html").read_text(encoding="utf-8")
    assert "image/jpeg" in page
    assert "secret" not in page


@pytest.mark.slow
def test_figures_that_the_predictions_do_not_give_are_refused(runs: Path, capsys) -> None:
    """A result.json with accuracy 7.5 was believed, and so would be any other figure."""
    edited(runs / "base/result.json", metrics__test__accuracy=7.5)
    assert "metrics.test.accuracy is '7.5'" in refused(runs, capsys, "base/result.json")
    edited(runs / "base/result.json", metrics__test__accuracy=0.95)
    assert "says test accuracy 0.95, its predictions.csv gives 0.7" in refused(runs, capsys, "base/result.json")
    edited(runs / "base/result.json", metrics__test__accuracy=0.7, metrics__test__recall__good=1.0)
    assert "says test recall good 1, its predictions.csv gives 0.8" in refused(runs, capsys, "base/result.json")
    edited(runs / "base/result.json", metrics__test__recall__good=0.8)
    edited(runs / "patchcore/result.json", metrics__test__pixel_aupro=0.99)
    assert "says test pixel_aupro 0.99, its pixels.npz gives" in refused(runs, capsys, "patchcore/result.json")
    edited(runs / "patchcore/result.json", metrics__test__by_type__crack__recall=0.0)
    assert "says test by_type crack recall 0," in refused(runs, capsys, "patchcore/result.json")


JSON = ["[]", "{", '{"attempt": 1}', "", '{"a":' * 20_000, "[" + "9" * 5000 + "]"]
CHANGES: list[dict[str, Any]] = [
    {"metrics": {"test": []}},
    {"metrics__test__loss": float("nan")},
    {"metrics__val__balanced_accuracy": "high"},
    {"metrics__test__images": 10**400},
    {"metrics": {}},
    {"classes": ["good", "good"]},
    {"classes": [1, 2]},
    {"seed": True},
    {"seconds": -1},
    {"status": "gone"},
    {"warnings": "none"},
    {"counts": {"train": 3}},
    {"explained": {"images": 3}},
    {"reported": {"accuracy": 0.5}},
    {"threshold": {"value": "x", "rule": "quantile"}},
    {"versions": {"torch": [1]}},
    {"problem": ""},
    {"method": ""},
]
TABLES = [
    "",
    "a\n1\n",
    "split,path\n\0\0\n",
    "split,path,label,prediction\ntest,a,b\n",
    "x" * 200_000,
    '"' + "y" * 999_999,
]
YAMLS = ["- a", "a: [", "a: &a [1]\nb: [*a, *a]\n", "[" * 5000, "seed: !!python/name:os.system", "seed: .inf"]
BYTES = ["state\n".encode("utf-16"), b"\xff\xfe\x00", b""]


@pytest.mark.slow
def test_every_damage_is_one_line_that_names_the_file(runs: Path, tmp_path: Path) -> None:
    """Seven of thirteen tampered files gave errors of Python."""

    def refuse(name: str) -> None:
        rows, comparison = report.sum_up(tmp_path, runs)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        if name == MISTAKES:  # a figure is none of the run's, and the page says why it is missing
            assert comparison.damaged == []
            assert page.count(f"{name} is damaged") == 1
            return
        (said,) = comparison.damaged
        assert sum(row["completed"] for row in rows) == 1
        assert name in page
        assert name in said
        assert "\n" not in said
        assert "remove it" in said or "leave it out" in said

    def answers(path: Path, *contents: str | bytes) -> None:
        before = path.read_bytes()
        for content in contents:
            path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            refuse(path.name)
        path.write_bytes(before)

    base, detector = runs / "base", runs / "patchcore"
    answers(base / RESULT, *JSON, *BYTES)
    for change in CHANGES:
        before = (base / RESULT).read_bytes()
        edited(base / RESULT, **change)
        refuse("base/result.json")
        (base / RESULT).write_bytes(before)
    answers(base / CONFIG, *YAMLS, *BYTES[:2])
    answers(base / HISTORY, *TABLES, *BYTES, "epoch\n-1\n", "epoch\ninf\n", "epoch,val/loss\n0,high\n")
    answers(base / MISTAKES, *BYTES, (base / MISTAKES).read_bytes()[:500], b"GIF89a")
    text = (base / PREDICTIONS).read_text(encoding="utf-8")
    row = text.splitlines()[1]
    answers(base / PREDICTIONS, *TABLES, *BYTES, text.replace(row, ""), text + row, text.replace("good", "sound"))
    text = (detector / PREDICTIONS).read_text(encoding="utf-8")
    first = text.splitlines()[1].rpartition(",")[2]
    answers(detector / PREDICTIONS, *(text.replace(first, score, 1) for score in ("nan", "1e999", "", "high")))
    whole = (detector / "pixels.npz").read_bytes()
    flipped = bytes([*whole[: len(whole) // 2], whole[len(whole) // 2] ^ 1, *whole[len(whole) // 2 + 1 :]])
    answers(detector / "pixels.npz", *BYTES, whole[:-100], flipped, bomb(4 << 20))
    report.sum_up(tmp_path, runs)  # all is as it was


def test_sizes_are_bounded(runs: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(anomaly, "UNPACKED", 1 << 20)
    (runs / "patchcore/pixels.npz").write_bytes(bomb(2 << 20))
    assert "unpacks to more than" in refused(runs, capsys, "patchcore/pixels.npz")
    monkeypatch.setitem(foreign.MOST, ".csv", 100)
    assert main(["task=compare", f"dirs=[{runs}]", f"hydra.run.dir={runs.parent / 'none'}"]) == 2  # no run is left
    assert "where at most 100 are expected" in capsys.readouterr().err


def test_terminals_are_sent_no_control_characters(runs: Path, tmp_path: Path, capsys) -> None:
    edited(runs / "base/result.json", attempt="base\x1b]0;x\x07\ud800")
    assert main(["task=compare", f"dirs=[{runs}]", f"hydra.run.dir={tmp_path / 'compared'}"]) == 0
    assert "\x1b]0" not in capsys.readouterr().out
    assert "base�]0;x��" in (tmp_path / "compared/report.html").read_text(encoding="utf-8")


@pytest.fixture
def ckpt(lab, tmp_path: Path) -> Path:
    assert lab("trainer.max_epochs=1", "hydra.run.dir=run") == 0
    return tmp_path / "run/best.ckpt"


def says(ckpt: Path, section: str, **values: Any) -> None:
    """Set values of the config.yaml beside a checkpoint."""
    content = yaml.safe_load((ckpt.parent / CONFIG).read_text(encoding="utf-8"))
    content[section] |= values
    (ckpt.parent / CONFIG).write_text(yaml.safe_dump(content), encoding="utf-8")


def test_evaluate_takes_a_config_beside_a_checkpoint_as_data(ckpt: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """Resolvers in it sent a secret to a host, and its archive planted files in a home directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SECRET", "hunter2")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(tmp_path / "products/widget", "widget")
    (ckpt.parent / RESULT).unlink()  # which has the data's real path
    for root in ("~", "${oc.env:HOME}"):
        says(ckpt, "data", root=root, category="widget", archive=str(tmp_path / "evil.tar"))
        capsys.readouterr()
        assert main(["task=evaluate", f"ckpt={ckpt}", "hydra.run.dir=judged"]) == 2
        assert not (tmp_path / "home").exists()
    says(
        ckpt,
        "data",
        root=str(tmp_path / "products"),
        category="${oc.env:SECRET}",
        archive="http://127.0.0.1:9/${oc.env:SECRET}",
    )
    assert main(["task=evaluate", f"ckpt={ckpt}", "hydra.run.dir=judged"]) == 2
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert "${oc.env:SECRET}" in said
    says(ckpt, "data", name="sample", root=str(tmp_path / "planted"), category="cable")
    origin = origin_of(ckpt)
    assert origin is not None
    assert origin.data.root == Config().data.root  # where the sample may be drawn, and nowhere else
    says(ckpt, "split", protocol="file", file="/etc/passwd")
    origin = origin_of(ckpt)
    assert origin is not None
    assert origin.split.file == str(ckpt.parent / "samples.csv")


@pytest.mark.slow
def test_a_run_from_elsewhere_is_evaluated_or_refused_in_one_line(ckpt: Path, tmp_path: Path, capsys) -> None:
    def refused(name: str, content: str | None = None) -> str:
        path = ckpt.parent / name
        before = path.read_text(encoding="utf-8")
        if content is not None:
            path.write_text(content, encoding="utf-8")
        capsys.readouterr()
        assert main(["task=evaluate", f"ckpt={ckpt}", "hydra.run.dir=judged"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"run/{name}" in said
        path.write_text(before, encoding="utf-8")
        return said

    for content in (*YAMLS[:2], "data: 3", "data: {image_size: big}", "seed: x", "split: {protocol: none}"):
        refused(CONFIG, content)
    refused(RESULT, "[]")
    for content in TABLES[1:3]:
        refused("samples.csv", content)
    assert "leads out of the data" in refused(
        "samples.csv", "path,split,digest,mask,mask_digest\n../../x.png,test,,,\n"
    )
    (ckpt.parent / CONFIG).rename(tmp_path / CONFIG)
    (ckpt.parent / CONFIG).symlink_to(tmp_path / CONFIG)
    assert "leads out of its run's directory" in refused(CONFIG)
    (ckpt.parent / CONFIG).unlink()
    says_more = yaml.safe_load((tmp_path / CONFIG).read_text(encoding="utf-8")) | {"hydra": {"a": "b"}, "later": 1}
    (ckpt.parent / CONFIG).write_text(yaml.safe_dump(says_more), encoding="utf-8")
    assert main(["task=evaluate", f"ckpt={ckpt}", "hydra.run.dir=judged"]) == 0
