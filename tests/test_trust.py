"""Files from elsewhere are data: archives, run directories and their tables; credentials are written nowhere."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mvtec_lab.errors import LabError, redacted
from mvtec_lab.results import read_csv, write_csv

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
    assert "is no address" in shown
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
