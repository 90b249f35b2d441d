"""Attempts differ from the base in what they claim and nothing else; wrong values are answered with one line."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

import pytest
from conftest import ONE_CLASS_METHODS

from mvtec_lab.checks import validate
from mvtec_lab.cli import compose
from mvtec_lab.config import OPTIMIZERS, SAMPLE_BACKBONE, SAMPLE_WEIGHTS, SCHEDULERS, Config
from mvtec_lab.errors import LabError
from mvtec_lab.models import optim
from mvtec_lab.own import CONF

ROTATE = {"limit": 15, "border_mode": 2, "p": 0.8}
JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02, "p": 0.8}
AUGMENT = {
    "augment.transforms.Rotate": ROTATE,
    "augment.transforms.ColorJitter": JITTER,
    "augment.transforms.HorizontalFlip": {"p": 0.5},
    "augment.transforms.VerticalFlip": {"p": 0.5},
}
CLAIMS = {
    "base": {},
    "head": {"optimizer.lr": 0.01},
    "finetune": {"model.unfreeze": 1},
    "full": {"model.unfreeze": "all"},
    "full_cycle": {
        "data.batch_size": 16,
        "model.unfreeze": "all",
        "model.warmup_epochs": 1,
        "scheduler.name": "onecycle",
        **{"optimizer.name": "adamw", "optimizer.first_stage": 0.01, "optimizer.weight_decay": 0.01},
        "augment.transforms.HorizontalFlip": {"p": 0.5},
        "augment.transforms.Affine": {"rotate": [-10, 10], "scale": [1.0, 1.1], "border_mode": 2, "p": 0.75},
        "augment.transforms.Perspective": {"scale": [0.0, 0.05], "border_mode": 2, "p": 0.75},
        "augment.transforms.RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.75},
    },
    "augment": AUGMENT,
    "earlystop": {"trainer.patience": 5},
    "cosine": {"scheduler.name": "cosine"},
    "warmup": {"model.unfreeze": 1, "model.warmup_epochs": 5},
    "all_of_them": {"model.unfreeze": 1, "trainer.patience": 5, "scheduler.name": "cosine", **AUGMENT},
}
# One-class attempts, by their method; how long and how fast they learn is their files' business.
ONE_CLASS = {
    **{name: name for name in ONE_CLASS_METHODS},
    "autoencoder_ssim": "autoencoder",
}
LEARNING = ("optimizer.", "trainer.max_epochs", "trainer.patience", "data.image_size", "data.batch_size", "augment.")
EFFECTIVE = {"loss.class_weights": "effective"}
GROUPS = {"loss.name": "group_softmax", "loss.defer": 0.5}
ADJUSTED = {"loss.name": "logit_adjustment"}
LONGTAIL = {  # against longtail/ce
    "ce": {},
    "balanced": {"loss.class_weights": "inverse"},
    "class_balanced": EFFECTIVE,
    "focal": {"loss.name": "focal"},
    "class_balanced_focal": {"loss.name": "focal", **EFFECTIVE},
    "cosine_classifier": {"model.head": "cosine"},
    "ldam": {"loss.name": "ldam", "model.head": "cosine"},
    "ldam_drw": {"loss.name": "ldam", "model.head": "cosine", **EFFECTIVE, "loss.beta": 0.9999, "loss.defer": 0.8},
    "logit_adjustment": ADJUSTED,
    "posthoc": {"loss.posthoc": 1.0},
    "balanced_softmax": {"loss.name": "balanced_softmax"},
    "class_aware": {"data.sampler": "inverse"},
    "sqrt_sampling": {"data.sampler": "sqrt"},
    "effective_sampling": {"data.sampler": "effective"},
    "mixup": {"augment.mix": "mixup"},
    "cutmix": {"augment.mix": "cutmix"},
    "bags": GROUPS,
    "bags_paper": {**GROUPS, "loss.bins": [10, 100, 1000]},
    "rac": {"model.head": "fused", **ADJUSTED},
    "rac_retrieval_only": {"model.head": "retrieval", **ADJUSTED},
    "knn": {"model.head": "knn", "trainer.max_epochs": 1, "optimizer.lr": 0.001},  # which trains nothing
    "dac": {"model.generate": True},
    "paste": {"data.sampler": "inverse", "augment.paste": 0.5},
}


def flat(values: dict, prefix: str = "", depth: int = 3) -> dict:
    """Dotted keys, three levels deep: a transform's arguments stay together."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict) and value and depth > 1:
            found |= flat(value, f"{prefix}{key}.", depth - 1)
        else:
            found[prefix + key] = value
    return found


@cache
def composed_once(attempt: str) -> dict:
    return flat(asdict(compose(f"attempt={attempt}")))


def test_every_attempt_file_has_a_claim_here() -> None:
    others = {"supersimplenet_mixed"}  # which differs from supersimplenet
    assert {path.stem for path in (CONF / "attempt").glob("*.yaml")} == {*CLAIMS, *ONE_CLASS, *others}
    assert {path.stem for path in (CONF / "attempt/longtail").glob("*.yaml")} == set(LONGTAIL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attempt", "base", "claim"),
    [
        *((name, "base", claim) for name, claim in CLAIMS.items()),
        ("longtail/ce", "base", {"split.pool": "all", "loss.class_weights": "none", "optimizer.lr": 0.01}),
        *((f"longtail/{name}", "longtail/ce", claim) for name, claim in LONGTAIL.items()),
        ("supersimplenet_mixed", "supersimplenet", {"split.protocol": "holdout", "model.options.known": 1000}),
    ],
)
def test_attempt_differs_from_the_base_in_its_claim_alone(attempt: str, base: str, claim: dict) -> None:
    before, composed = composed_once(base), flat(asdict(compose(f"attempt={attempt}")))
    missing = object()
    differing = {key: value for key, value in composed.items() if before.get(key, missing) != value}
    assert differing.pop("attempt", base) == attempt
    assert differing == claim
    assert before.keys() - composed.keys() <= {
        "augment.transforms",
        "model.options",
    }  # the empty mapping gave way to its entries


@pytest.mark.slow
@pytest.mark.parametrize(("attempt", "method"), ONE_CLASS.items())
def test_a_one_class_attempt_claims_its_method(attempt: str, method: str) -> None:
    folder = "data=mvtec", "data.root=somewhere"  # the sample has a backbone of its own for methods with one
    before, composed = (flat(asdict(compose(f"attempt={name}", *folder))) for name in ("base", attempt))
    differing = {k: v for k, v in composed.items() if before.get(k) != v and not k.startswith(LEARNING)}
    assert differing.pop("attempt") == attempt
    assert differing.pop("model.options.reconstruction", "l2") == ("ssim" if attempt.endswith("ssim") else "l2")
    assert differing.pop("model.options.score", "max") == "max"
    assert differing == {"model.method": method, "split.protocol": "one_class", "data.masks": "optional"}


def test_the_command_line_beats_the_attempt() -> None:
    assert compose("attempt=finetune", "model.unfreeze=2").model.unfreeze == 2


def test_the_defaults_are_those_of_the_classes() -> None:
    """All but what the sample chooses for itself."""
    config = compose()
    config.model.backbone, config.model.weights = "resnet18", "DEFAULT"
    assert config == Config()


@pytest.mark.parametrize(
    ("words", "backbone", "weights"),
    [
        ("", SAMPLE_BACKBONE, SAMPLE_WEIGHTS),
        ("attempt=finetune", SAMPLE_BACKBONE, SAMPLE_WEIGHTS),
        ("attempt=patchcore", SAMPLE_BACKBONE, SAMPLE_WEIGHTS),
        ("data=folder data.root=x", "resnet18", "DEFAULT"),
        ("data=mvtec data.root=x attempt=finetune", "resnet18", "DEFAULT"),
        ("data=folder data.root=x model.weights=SAMPLE_V1", "resnet18", SAMPLE_WEIGHTS),  # asked for; refused later
        ("model.backbone=mobilenet_v2", "mobilenet_v2", "DEFAULT"),
        ("model.backbone=mobilenet_v2 model.weights=SAMPLE_V1", "mobilenet_v2", SAMPLE_WEIGHTS),
        ("model.weights=DEFAULT", SAMPLE_BACKBONE, "DEFAULT"),
        ("model.weights=null", SAMPLE_BACKBONE, None),
        ("attempt=segment/fpn", "mobilenet_v2", "DEFAULT"),  # which its file names
        ("attempt=bottle/attempt1 data=sample", "resnet18", "DEFAULT"),
        ("attempt=vae", "resnet18", "DEFAULT"),  # it has no backbone
    ],
)
def test_the_sample_has_a_backbone_and_weights_of_its_own(words: str, backbone: str, weights: str | None) -> None:
    model = compose(*words.split()).model
    assert (model.backbone, model.weights) == (backbone, weights)


def test_yaml_names_no_code() -> None:
    for path in CONF.rglob("*.yaml"):
        assert "_target_" not in path.read_text(), path


def test_names_in_the_configuration_are_those_of_the_code() -> None:
    assert set(OPTIMIZERS) == set(optim.OPTIMIZERS)
    for group, known in (("optimizer", OPTIMIZERS), ("scheduler", SCHEDULERS)):
        assert {path.stem for path in (CONF / group).glob("*.yaml")} == set(known)
        for name in known:
            assert getattr(compose(f"{group}={name}"), group).name == name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("attempt=finetun", "unknown attempt 'finetun': did you mean finetune?"),
        ("attempt=segment/fnp", "unknown attempt 'segment/fnp': did you mean segment/fpn"),
        ("attempt=segmnt/fpn", "unknown attempt 'segmnt/fpn': did you mean segment/fpn?"),
        ("attempt=sam", "unknown attempt 'sam': did you mean segment/sam?"),
        ("attempt=segment", "unknown attempt 'segment': did you mean segment/deeplab, segment/fcn, segment/fpn, "),
        ("attempt=zzz", "unknown attempt 'zzz': known are all_of_them, augment, "),
        ("data=mvtek", "unknown data 'mvtek': did you mean mvtec?"),
        ("audit=strickt", "unknown audit 'strickt': did you mean strict?"),
        ("optimizer=adm", "unknown optimizer 'adm': did you mean adam, adamw?"),
        ("optimizer.name=adm", "unknown optimizer 'adm': did you mean adam, adamw?"),
        ("scheduler=cosin", "unknown scheduler 'cosin': did you mean cosine?"),
        ("trainer.max_epoch=3", "unknown key 'trainer.max_epoch': did you mean trainer.max_epochs"),
        ("optimiser=adam", "unknown key 'optimiser': did you mean optimizer"),
        ("+data.batchsize=4", "unknown key 'data.batchsize': did you mean data.batch_size"),
        ("data.batch_size=many", "data.batch_size: Value 'many' of type 'str' could not be converted to Integer"),
        ("data.batch_size=0", "data.batch_size=0 is out of range: give 1 or more"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1 is out of range: give 1 or more"),
        ("trainer.patience=0", "trainer.patience=0 is out of range"),
        ("trainer.monitor=val/acc", "unknown trainer.monitor 'val/acc': did you mean val/accuracy"),
        ("optimizer.lr=0", "optimizer.lr=0.0 is out of range"),
        ("optimizer.lr=nan", "optimizer.lr=nan is out of range"),
        ("loss.beta=1", "loss.beta=1.0 is out of range"),
        ("loss.beta=-0.1", "loss.beta=-0.1 is out of range: give a number in [0, 1)"),
        ("loss.gamma=-1", "loss.gamma=-1.0 is out of range: give 0 or more"),
        ("loss.name=focl", "unknown loss.name 'focl': did you mean focal?"),
        ("loss.name=ldam", "give model.head=cosine"),
        ("loss.name=group_softmax", "give loss.class_weights=none"),
        ("loss.bins=[10,5]", "loss.bins=[10, 5] divides no counts"),
        ("loss.bins=0", "loss.bins=0 divides no counts"),
        ("loss.defer=1", "loss.defer=1.0 is out of range"),
        ("loss.defer=0.5 loss.class_weights=none", "has nothing to defer"),
        ("loss.defer=0.5 trainer.patience=3", "leave one of them out"),
        ("loss.defer=0.5 trainer.max_epochs=1", "is no epoch: give more"),
        ("loss.name=group_softmax loss.class_weights=none", "give loss.defer=0.5"),
        (
            "attempt=longtail/bags model.unfreeze=1 model.warmup_epochs=15",
            "leaves none of the 15 epochs before the groups",
        ),
        ("augment.paste=0.5 model.head=knn", "leave it out"),
        ("model.head=knm", "unknown model.head 'knm': did you mean knn?"),
        ("model.neighbours=0", "model.neighbours=0 is out of range"),
        ("model.generate=true model.unfreeze=1", "give model.unfreeze=0"),
        ("augment.paste=2", "augment.paste=2.0 is out of range: give 0 to 1"),
        ("augment.mix=mixupp", "unknown augment.mix 'mixupp': did you mean mixup?"),
        ("augment.mix=mixup model.head=knn", "leave out augment.views, model.generate and a model.head that retrieves"),
        ("data.imbalance=0.5", "data.imbalance=0.5 is out of range: give 1 or more"),
        ("verdict.metric=acc", "unknown verdict.metric 'acc'"),
        ("split.val=0", "split.val=0.0 is out of range"),
        ("split.val=0.9", "add up to 1.1"),
        ("split.pool=everything", "unknown split.pool 'everything'"),
        ("split.per_class=1", "split.per_class=1 is out of range"),
        ("split.protocol=kfold split.fold=5", "split.fold=5 does not exist"),
        ("split.protocol=file", "go together: give both"),
        ("split.file=split.csv", "go together: give both"),
        ("split.protocol=file split.file=split.csv split.pool=all", "names its images itself"),
        ("seed=4294967296", "seed=4294967296 is out of range: give 0 to 4294967295"),
        ("scheduler.gamma=2", "scheduler.gamma=2.0 is out of range"),
        ("attempt=warmup trainer.max_epochs=5", "model.warmup_epochs=5 leaves none"),
        ("attempt=[base,cosine]", "attempt takes one name; several are a sweep: -m attempt=A,B"),
        ("+foo=1", "unknown key 'foo'"),
        ("split.group_by='('", "is no regular expression"),
        ("split.group_by=abc", "has no group"),
        ("attempt=patchcore augment=standard", "it is fitted once, to the images as they are: leave it out"),
        ("attempt=patchcore loss.name=focal", "loss.name=focal does nothing for model.method=patchcore"),
        ("attempt=patchcore model.unfreeze=1", "model.unfreeze=1 does nothing for model.method=patchcore"),
        ("attempt=patchcore data.sampler=inverse", "data.sampler=inverse does nothing for model.method=patchcore"),
        ("attempt=autoencoder augment.mix=mixup", "augment.mix=mixup does nothing for model.method=autoencoder"),
        ("attempt=autoencoder scheduler=cosine", "scheduler.name=cosine does nothing for model.method=autoencoder"),
        ("attempt=padim model.options.clusters=5", "does nothing for model.method=padim: it is an option of kmeans"),
        ("model.options.coreset=0.1", "does nothing for model.method=classifier: it is an option of patchcore"),
        (
            "model.options.layers=[layer2]",
            "model.method=classifier: it is an option of deep_svdd, deeplab, descriptors, fcn",
        ),
        ("threshold.rule=best_f1", "does nothing for model.method=classifier: it is for one-class methods"),
        ("attempt=fanogan trainer.patience=3", "might stop fanogan before its encoder"),
        (
            "attempt=patchcore model.options.coreset=0",
            "model.options.coreset=0 is out of range: give a number above 0, up to 1",
        ),
        (
            "attempt=patchcore model.options.corset=0.1",
            "unknown option of patchcore 'corset': did you mean coreset, score?",
        ),
        ("attempt=rotation model.options.turns=3", "model.method=rotation has no options: leave out"),
        ("attempt=padim model.options.dimensions=many", "model.options.dimensions=many is not a whole number"),
        ("attempt=padim model.options.dimensions=1.5", "model.options.dimensions=1.5 is not a whole number"),
        ("attempt=memae model.options.slots=0", "model.options.slots=0 is out of range: give 2 to 100000"),
        ("attempt=fanogan trainer.max_epochs=1", "give 2 or more"),
        ("attempt=patchcore threshold.rule=synthetc", "unknown threshold.rule 'synthetc': did you mean synthetic?"),
        ("attempt=patchcore split.pool=all", "leave out split.val_is_test, split.per_class, split.file and split.pool"),
        ("attempt=patchcore split.group_by='('", "is no regular expression"),
        ("attempt=patchcore split.protocol=holdout", "give split.protocol=one_class, or kfold"),
        ("attempt=patchcore split.protocol=kfold split.val_is_test=true", "never from test images: leave it out"),
        ("data=mvtec data.root=null", "give data.root=FOLDER or set MVTEC_ROOT"),
    ],
)
def test_a_wrong_value_is_answered_with_one_line(override: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MVTEC_ROOT", raising=False)
    with pytest.raises(LabError) as caught:
        compose(*override.split())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_classes_are_validated_too() -> None:
    config = Config()
    validate(config)
    config.split.val_is_test = True
    config.split.test = 0.9  # not added up: val is test
    validate(config)
