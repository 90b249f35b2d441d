"""A key that was given and has no effect is refused, whoever gave it; in a sweep one job that it is for is enough."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from mvtec_lab.arguments import typed_keys
from mvtec_lab.cli import compose, main
from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.knobs import knobs, settings
from mvtec_lab.own import CONF
from mvtec_lab.problems import METHODS, check
from mvtec_lab.results import find_runs
from mvtec_lab.tasks import TASKS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("loss.gamma=3", "loss.name=cross_entropy: it is for loss.name=focal: leave it out"),
        ("loss.gamma=2", "loss.gamma=2.0 does nothing"),  # the default, but somebody asked for it
        ("loss.margin=0.3", "it is for loss.name=ldam"),
        ("loss.tau=2", "it is for loss.name=logit_adjustment"),
        ("loss.others=4", "it is for loss.name=group_softmax"),
        ("loss.bins=[5,20]", "it is for loss.name=group_softmax"),
        ("loss.beta=0.9", "it is for loss.class_weights=effective"),
        ("data.sampler=sqrt data.sampler_beta=0.9", "it is for data.sampler=effective"),
        ("optimizer.momentum=0.5", "does nothing for optimizer.name=adam: it is for optimizer.name=sgd, rmsprop"),
        ("scheduler.step_size=3", "it is for scheduler.name=step"),
        ("scheduler=cosine scheduler.gamma=0.5", "it is for scheduler.name=step, plateau"),
        ("scheduler=step scheduler.patience=2", "it is for scheduler.name=plateau"),
        ("model.scale=10", "it is for model.head=cosine"),
        ("model.neighbours=3", "does nothing for model.head=linear: it is for model.head=fused, retrieval, knn"),
        ("attempt=longtail/knn optimizer.lr=0.1", "a vote of neighbours trains nothing"),
        ("model.warmup_epochs=2", "does nothing for model.unfreeze=0: no stages wait for the head"),
        ("optimizer.first_stage=0.1", "does nothing for model.unfreeze=0: the head alone trains"),
        ("attempt=segment/fpn model.unfreeze=1 optimizer.first_stage=0.1", "it is a setting of classifier"),
        ("augment.mix_alpha=0.2", "nothing is mixed"),
        ("data.sha256=zz", "does nothing for data.archive=null: it is an archive's digest"),
        ("data.archive=x.zip", "does nothing for data.name=sample"),
        ("split.folds=3", "does nothing for split.protocol=holdout: it is for split.protocol=kfold"),
        ("split.protocol=kfold split.test=0.3", "it is for split.protocol=holdout"),
        ("split.val_is_test=true split.val=0.3", "the test images validate"),
        ("split.protocol=file split.file=x.csv split.val=0.3", "the file says which images validate"),
        ("cv.repeats=2", "cv.repeats=2 does nothing for cv.folds=null: it repeats a cross-validation"),
        ("reported.split=test", "nothing is reported"),
        ("cache.dir=null cache.max_gb=5", "does nothing for cache.dir=null: nothing is kept"),
        ("attempt=patchcore trainer.max_epochs=30", "trainer.max_epochs=30 does nothing for model.method=patchcore"),
        ("attempt=patchcore optimizer.lr=0.1", "it is fitted once"),
        ("attempt=patchcore optimizer=sgd", "optimizer.name=sgd does nothing for model.method=patchcore"),
        ("attempt=patchcore trainer.patience=3", "it is fitted once"),
        ("attempt=rotation trainer.monitor=val/loss", "does nothing for model.method=rotation"),
        ("attempt=rotation model.options.layers=[layer2]", "it is an option of deep_svdd"),
        ("attempt=vae model.backbone=resnet50", "its networks are its own"),
        ("ckpt=x", "ckpt=x does nothing for task=train"),
        ("task=describe trainer.max_epochs=3", "trainer.max_epochs=3 does nothing for task=describe"),
        ("task=describe loss.gamma=3", "it is for loss.name=focal"),
        ("task=evaluate data.image_size=64", "data.image_size=64 does nothing for task=evaluate"),
        ("task=evaluate data.white=100", "data.white=100 does nothing for task=evaluate"),
        ("task=predict threshold.quantile=0.5", "threshold.quantile=0.5 does nothing for task=predict: leave it out"),
        ("task=predict data=folder data.root=x", "does nothing for task=predict"),
        ("task=predict model.options.coreset=0.1", "model.options.coreset=0.1 does nothing for task=predict"),
        ("task=export source=x", "does nothing for task=export"),
        ("task=compare seed=3", "seed=3 does nothing for task=compare"),
        ("task=backbones cache.dir=x", "does nothing for task=backbones"),
    ],
)  # fmt: skip
def test_a_key_without_effect_is_refused(words: str, said: str) -> None:
    with pytest.raises(LabError) as caught:
        compose(*words.split())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "loss.name=focal loss.gamma=2",
        "optimizer=sgd optimizer.momentum=0.9",
        "optimizer=adam scheduler=none augment=none",
        "attempt=patchcore scheduler=none data.sampler=none loss.class_weights=none model.unfreeze=0",
        "attempt=vae model.weights=null",
        "model.head=fused model.neighbours=3",
        "attempt=spade model.options.neighbours=3",
        "scheduler=plateau scheduler.gamma=0.5 scheduler.patience=2",
        "data=folder data.root=x data.archive=x.zip data.sha256=zz",
        "split.protocol=kfold split.folds=4 split.fold=1",
        "attempt=finetune task=predict data.batch_size=4 ckpt=x source=y",
        "task=compare dirs=[a,b] verdict.metric=macro_f1",
        "task=evaluate ckpt=x split.fold=2 data.root=y",  # whose split is its run's
    ],
)
def test_a_key_with_an_effect_is_taken(words: str) -> None:
    compose(*words.split())


def test_what_plain_python_and_attempts_set_is_held_to_the_same() -> None:
    config = Config()
    config.loss.gamma = 2.0
    check(config)  # cannot be told from what nobody gave
    config.loss.gamma = 3.0
    with pytest.raises(LabError, match=r"loss\.gamma=3\.0 does nothing"):
        check(config)


def test_the_table_names_keys_values_and_tasks_that_exist() -> None:
    known = settings(Config())
    assert {needs.key for _, _, knob in knobs(Config) for needs in knob.needs} <= known.keys()
    for name in METHODS.names():
        rules = import_module(f"mvtec_lab.problems.{METHODS[name].problem}.rules")
        assert rules.without_effect(METHODS[name]).keys() <= known.keys()
    for start in (start for task in TASKS.values() for start in (*task.reads, *task.ignores)):
        assert any(key.startswith(start) for key in known), start
    for path in (CONF / "attempt").rglob("*.yaml"):  # none sets what has no effect: composing them all is slow
        assert not {"ckpt", "source", "dirs"} & (yaml.safe_load(path.read_text()) or {}).keys()
    assert typed_keys(["+augment.transforms.Rotate.p=1", "optimizer=sgd", "++seed=1"]) == {
        "augment.transforms": "1",
        "optimizer.name": "sgd",
        "seed": "1",
    }


@pytest.mark.slow
def test_in_a_sweep_a_key_needs_one_job_that_it_is_for(lab, tmp_path: Path, capsys) -> None:
    sweep = [
        "-m",
        "attempt=base,nearest",
        "data.masks=optional",
        "model.options.layers=[features.relu2]",
        "hydra.sweep.dir=s",
    ]
    assert (
        lab(
            *sweep,
            "model.options.neighbours=2",
            "optimizer=sgd",
            "optimizer.lr=0.02",
            "loss.name=focal",
            "loss.gamma=3",
        )
        == 0
    )
    runs = {
        run.attempt: yaml.safe_load(Path(run.run_dir, "config.yaml").read_text()) for run in find_runs(tmp_path / "s")
    }
    assert runs["base"]["optimizer"] | {"weight_decay": 0} == {
        "name": "sgd", "lr": 0.02, "first_stage": 1, "momentum": 0.9, "weight_decay": 0
    }  # fmt: skip
    assert runs["base"]["loss"]["gamma"] == 3
    assert runs["base"]["trainer"]["max_epochs"] == 2
    default = Config()
    assert runs["nearest"]["optimizer"] == vars(default.optimizer)  # a run's config says what it was made with
    assert runs["nearest"]["loss"] == vars(default.loss)
    assert runs["nearest"]["trainer"]["max_epochs"] == default.trainer.max_epochs
    capsys.readouterr()
    assert lab("-m", "attempt=base,nearest", "scheduler.step_size=3", "hydra.sweep.dir=t") == 2
    assert "scheduler.step_size=3 does nothing" in capsys.readouterr().err
    assert lab("-m", "attempt=base,nearest", "trainer.max_epochs=1,2", "hydra.sweep.dir=t") == 2  # two equal runs
    assert "trainer.max_epochs=1 does nothing for model.method=nearest" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_what_would_fail_in_mid_run_is_refused_ahead(lab, tmp_path: Path, capsys) -> None:
    for words, said in (
        ("trainer.precision=bf16-true", "unknown trainer.precision 'bf16-true': did you mean"),
        ("trainer.precision=64", "unknown trainer.precision '64'"),
        ("attempt=draem data.image_size=8", "data.image_size=8 is too small for draem: give 16 or more"),
    ):
        for mode in ([], ["-m"]):
            assert lab(*mode, *words.split()) == 2
            complaint = capsys.readouterr().err
            assert said in complaint
            assert complaint.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "words",
    ["cache.max_gb=inf", "loss.gamma=inf", "optimizer.weight_decay=inf", "model.scale=inf", "optimizer.lr=inf",
     "loss.tau=nan", "reported.accuracy=nan", "split.val=nan", "data.imbalance=inf", "loss.bins=[1,inf]",
     "+augment.transforms.Rotate.limit=[-inf,1]"],
)  # fmt: skip
def test_numbers_are_finite(words: str, capsys) -> None:
    assert main([words]) == 2
    said = capsys.readouterr().err
    assert " is out of range: give finite numbers" in said
    assert said.count("\n") == 1


def test_what_an_attempt_sets_gives_way_to_what_is_typed():
    config = compose("attempt=segment/fpn", "split.val_is_test=true")
    assert config.split.val == Config().split.val  # the attempt's 0.1 would do nothing
    with pytest.raises(LabError, match=r"split\.val=0\.1 does nothing"):
        compose("attempt=segment/fpn", "split.val_is_test=true", "split.val=0.1")
    with pytest.raises(LabError, match=r"trainer\.patience"):  # an attempt without effect is a mistake
        compose("attempt=earlystop", "model.method=patchcore", "split.protocol=one_class")
