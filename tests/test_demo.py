"""The main command on the sample, as ``make demo`` runs it: no network, and something is learnt."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest

from mvtec_lab.cli import main
from mvtec_lab.reporting.summary import SUMMARY
from mvtec_lab.results import read_csv


@pytest.mark.slow
def test_the_demo_learns_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    asked = []

    def unreachable(request: object, *args: object, **kwargs: object) -> None:
        asked.append(request)
        raise URLError("Name or service not known")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    assert main(["-m", "attempt=finetune,augment,earlystop,cosine", "hydra.sweep.dir=demo"]) == 0
    rows = read_csv(tmp_path / "demo" / SUMMARY)
    above = [row["attempt"] for row in rows if float(row["test_accuracy_low"]) > float(row["majority_baseline"])]
    assert len(above) >= 2  # with their whole intervals
    assert asked == []
    assert {row["weights"] for row in rows} == {"SAMPLE_V1"}
    assert all("pretrained on drawn images" in row["marks"] for row in rows)
    report = (tmp_path / "demo/report.html").read_text(encoding="utf-8")
    for said in (" ".join(capsys.readouterr().out.split()), report):
        assert "pretrained on drawn images" in said
    history = [float(row["train/loss"]) for row in read_csv(tmp_path / "demo/finetune/history.csv")]
    assert history[-1] < 0.3 * history[0]
