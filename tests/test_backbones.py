"""Every TorchVision family, taken apart into stages, must still be the same function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import others_slow
from torch import nn
from torchvision import models
from torchvision.models import _api

from mvtec_lab.errors import LabError
from mvtec_lab.models import backbones
from mvtec_lab.models.backbones import check_image_size, input_size, names, stages, trainable_stages
from mvtec_lab.models.names import look, torchvision_names

# The smallest member of each family and a small image; VGG takes seconds to initialise and is with the slow ones.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vit_b_32": 224,
}
build: Any = backbones.build  # children by name are no news to a type checker
Register = Callable[[str], Callable[[Callable[..., nn.Module]], object]]
OPTIONS = {name: {"init_weights": False, "transform_input": True} for name in ("googlenet", "inception_v3")}


def test_the_names_of_torchvision_are_known_without_it() -> None:
    own = {name for name in names() if models.get_model_builder(name).__module__.startswith("torchvision.")}
    assert len(own) > 70
    assert torchvision_names() == own


@pytest.mark.parametrize(
    "name", others_slow(sorted(torchvision_names()), "resnet18", "squeezenet1_1", "mobilenet_v3_small", "vit_b_32")
)
def test_stages_are_known_without_the_network(name: str) -> None:
    with torch.device("meta"):
        model = build(name, 3)
    count = len(stages(model))
    look(name, None, "all")
    look(name, None, stages(model))
    look(name, None, count)
    with pytest.raises(LabError, match=f"does not fit a backbone of {count} stages"):
        look(name, None, count + 1)
    with pytest.raises(LabError, match=r"unknown stage in model.unfreeze 'trunk'"):
        look(name, None, ["trunk"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that both forward passes add up in the same order
    yield
    torch.set_num_threads(threads)


def last_layer(network: nn.Module) -> nn.Module:
    return [layer for layer in network.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][-1]


def check_family(name: str, size: int) -> None:
    original = models.get_model(name, **OPTIONS.get(name, {})).eval()
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh statistics hide a norm that is left out
            nn.init.normal_(module.get_buffer("running_mean"), std=0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.8, 1.2)
    model = build(name, 1000, weights=original.state_dict()).eval()
    last_layer(model).load_state_dict(last_layer(original).state_dict())
    activation = images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = original(images)
        for name, child in model.named_children():
            before = activation.clone()
            result = child(activation)
            assert torch.equal(activation, before), f"{name} writes into its input, which may be a cached activation"
            activation = result
    assert torch.equal(activation, expected)

    kept = [path for path, _ in original.named_parameters() if not path.lower().startswith("aux")]
    parameters = [parameter for child in model for parameter in child.parameters()]
    assert len(parameters) == len({id(parameter) for parameter in parameters}) == len(kept)
    assert all(any(True for _ in model.get_submodule(stage).parameters()) for stage in stages(model))
    assert [child for child, _ in model.named_children()][-1] == "head"
    assert len(list(model.head.parameters())) <= 2
    assert not any(child.startswith("pool.") for child, _ in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(*item, marks=pytest.mark.slow if item[0] in ("alexnet", "vit_b_32") else ())
        for item in FAMILIES.items()
    ],
)
def test_a_family_is_the_same_function(name: str, size: int) -> None:
    check_family(name, size)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_backbone_is_the_same_function(name: str) -> None:
    with torch.device("meta"):
        skeleton = models.get_model(name) if not name.startswith("regnet") else None
    if name == "regnet_y_128gf" or (skeleton and sum(p.numel() for p in skeleton.parameters()) > 150e6):
        pytest.skip("two copies of more than 150 million parameters; it shares its layout with its smaller siblings")
    check_family(name, input_size(meta(name)) or (75 if name == "inception_v3" else 64))


def test_every_family_is_known() -> None:
    modules = {models.get_model_builder(name).__module__ for name in [*FAMILIES, "vgg11"]}
    assert modules == {models.get_model_builder(name).__module__ for name in models.list_models(module=models)}


def test_names_are_classification_models_and_the_users_own(tiny_net: str) -> None:
    assert {"resnet18", "vit_b_16", tiny_net} <= set(names())
    assert not {"fasterrcnn_resnet50_fpn", "quantized_resnet18", "fcn_resnet50", "r3d_18", "raft_small"} & set(names())


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4"],
        "mobilenet_v2": ["stage1", "stage2", "stage3", "stage4", "stage5"],
        "mobilenet_v3_small": ["stage1", "stage2", "stage3", "stage4", "stage5", "neck"],
        "regnet_x_400mf": ["stem", "block1", "block2", "block3", "block4"],
        "densenet121": ["stem", "block1", "block2", "block3", "block4"],
        "shufflenet_v2_x0_5": ["stem", "stage2", "stage3", "stage4"],
        "swin_t": ["stage1", "stage2", "stage3", "stage4"],
        "vit_b_32": ["stem", *(f"layer{i}" for i in range(12))],
        "vgg11": ["stage1", "stage2", "stage3", "stage4", "stage5", "neck"],
        "maxvit_t": ["stem", "block1", "block2", "block3", "block4", "neck"],
    }.items(),
)
def test_stage_names(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        model = build(name, 3)
    assert stages(model) == expected
    pool = expected.index("neck") if "neck" in expected else len(expected)
    children = [*expected[:pool], "pool", *expected[pool:], "head"]
    assert [child for child, _ in model.named_children()] == children


def test_each_stage_halves_the_map() -> None:
    model = build("mobilenet_v2", 3).eval()
    images = torch.randn(1, 3, 64, 64)
    sizes = []
    for stage in stages(model):
        images = model.get_submodule(stage)(images)
        sizes.append(images.shape[-1])
    assert sizes == [32, 16, 8, 4, 2]


def test_gradients_reach_the_suffix_alone() -> None:
    model = build("resnet18", 3)
    trained = [*trainable_stages(model, 1), "head"]
    for name, child in model.named_children():
        child.requires_grad_(name in trained)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    with_gradient = {path.split(".")[0] for path, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"layer4", "head"}


@pytest.mark.parametrize(
    ("unfreeze", "expected"),
    [
        (0, []),
        (1, ["layer4"]),
        (2, ["layer3", "layer4"]),
        (5, ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("all", ["stem", "layer1", "layer2", "layer3", "layer4"]),
        ("layer2", ["layer2"]),
        (["layer4", "stem"], ["stem", "layer4"]),
        ([], []),
    ],
)
def test_trainable_stages(unfreeze: int | str | list[str], expected: list[str]) -> None:
    assert trainable_stages(resnet(), unfreeze) == expected


@pytest.mark.parametrize(
    ("unfreeze", "answer"),
    [
        (6, r"model.unfreeze=6 .* 5 stages: give 0 to 5, all, or some of stem, layer1, layer2, layer3, layer4"),
        (-1, "model.unfreeze=-1 .* give 0 to 5"),
        (True, "model.unfreeze=True"),
        (None, "model.unfreeze=None"),
        (["layer3", "layr4"], "unknown stage in model.unfreeze 'layr4': this backbone has stem, layer1, .* layer4"),
        ("al", "unknown stage in model.unfreeze 'al'"),
    ],
)
def test_trainable_stages_refused(unfreeze: object, answer: str) -> None:
    with pytest.raises(LabError, match=answer):
        trainable_stages(resnet(), unfreeze)  # type: ignore[arg-type]


def resnet() -> nn.Sequential:
    with torch.device("meta"):
        return build("resnet18", 3)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_the_head_depends_on_the_seed_alone(name: str) -> None:
    state = models.get_model(name, num_classes=5).state_dict()

    def head(seed: int, weights: dict[str, torch.Tensor] | None) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in build(name, 4, weights=weights).head.parameters()])

    assert torch.equal(head(1, None), head(1, state))
    assert not torch.equal(head(1, None), head(2, None))
    assert build(name, 4).eval()(torch.randn(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mnasnet0_5"])  # their dropout works in place in TorchVision
def test_training_the_head_leaves_its_input_alone(name: str) -> None:
    head = build(name, 3).head
    cached = torch.ones(4, head[-1].in_features)
    head.train()(cached)
    assert torch.equal(cached, torch.ones_like(cached))


def test_a_checkpoint_carries_the_input_transform() -> None:
    images = torch.randn(1, 3, 32, 32)
    trained = build("googlenet", 3, weights=models.googlenet(init_weights=False, aux_logits=True).state_dict()).eval()
    restored = build("googlenet", 3).eval()
    restored.load_state_dict(trained.state_dict())
    assert torch.equal(restored(images), trained(images))


def test_without_weights_googlenet_takes_images_as_they_are() -> None:
    original = models.googlenet(init_weights=False).eval()
    model = build("googlenet", 1000).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.stage1.input(images), original._transform_input(images))


def test_vit_weights_of_another_image_size_are_interpolated() -> None:
    state = models.vit_b_32(image_size=256).state_dict()
    model = build("vit_b_32", 3, weights=state)
    assert model.stem.pos_embedding.shape == (1, 50, 768)
    assert torch.equal(model.stem.pos_embedding[:, 0], state["encoder.pos_embedding"][:, 0])
    with pytest.raises(LabError, match=r"images of 230 x 230 pixels .* data.image_size=224"):
        model(torch.randn(1, 3, 230, 230))


def test_densenets_published_key_names() -> None:
    state = models.densenet121().state_dict()
    published = {}
    for key, value in state.items():
        for part in ("norm1", "conv1", "norm2", "conv2"):
            key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in key else key
        published[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    model = build("densenet121", 3, weights=published)
    expected = state["features.denseblock4.denselayer16.conv2.weight"]
    assert torch.equal(model.block4.denseblock4.denselayer16.conv2.weight, expected)


def test_mnasnet_from_a_plain_dict() -> None:
    state = dict(models.mnasnet0_5().state_dict())
    assert torch.equal(next(build("mnasnet0_5", 3, weights=state).parameters()), state["layers.0.weight"])


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("mobilenet_v2", "it lacks conv1.weight"),
        ("resnet34", "resnet18 has no layer1.2.conv1.weight"),
        ("resnet50", "size mismatch for layer1.0.conv1.weight"),
    ],
)
def test_weights_of_another_backbone(other: str, reason: str) -> None:
    with pytest.raises(LabError, match=reason) as caught:
        build("resnet18", 3, weights=models.get_model(other).state_dict())
    assert "\n" not in str(caught.value)


def test_an_unknown_backbone() -> None:
    for call in (lambda: build("resnet19", 3), lambda: check_image_size("resnet19", 224)):
        with pytest.raises(LabError, match="unknown backbone 'resnet19': did you mean resnet18"):
            call()


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [
        ("resnet18", 8, True),
        ("regnet_x_400mf", 32, True),
        ("inception_v3", 74, False),
        ("inception_v3", 75, True),
        ("vit_b_32", 128, False),
        ("vit_b_32", 224, True),
        ("maxvit_t", 448, False),
        ("maxvit_t", 224, True),
    ],
)
def test_image_sizes(name: str, size: int, fits: bool) -> None:
    if fits:
        return check_image_size(name, size)
    with pytest.raises(LabError, match=f"data.image_size={size} does not fit {name}: give data.image_size=224"):
        check_image_size(name, size)
    return None


def meta(name: str) -> nn.Sequential:
    with torch.device("meta"):
        return build(name, 2)


def test_input_size() -> None:
    sizes = {name: input_size(meta(name)) for name in ("vit_b_16", "maxvit_t", "swin_t", "resnet18")}
    assert sizes == {"vit_b_16": 224, "maxvit_t": 224, "swin_t": None, "resnet18": None}


class Own(nn.Module):
    """Features and a head named fc, without a pooling of its own name; twice the same activation object."""

    def __init__(self, num_classes: int = 10, scale: float = 1.0) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), relu, nn.Conv2d(4, 8, 3, stride=2), relu)
        self.fc = nn.Linear(8, num_classes)
        self.scale = scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(images).mean((2, 3)) * self.scale)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    monkeypatch.setattr(_api, "BUILTIN_MODELS", dict(_api.BUILTIN_MODELS))
    return _api.register_model


def test_a_registered_network_needs_no_entry(register: Register) -> None:
    register("own")(lambda **_: Own())
    model = build("own", 3)
    assert [name for name, _ in model.named_children()] == ["stage1", "stage2", "pool", "head"]
    original = Own().eval()
    model = build("own", 10, weights=original.state_dict()).eval()
    model.head[-1].load_state_dict(original.fc.state_dict())
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images), original(images))


def test_a_registered_network_that_does_more_is_refused_until_it_has_a_layout(register: Register) -> None:
    class Scaled(Own):
        pass

    register("scaled")(lambda **_: Scaled(scale=2.0))
    with pytest.raises(LabError, match=r"Scaled is not just features.*@layout.register\(Scaled\)"):
        build("scaled", 3)

    class Twice(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return 2 * maps.mean((2, 3))

    @backbones.layout.register(Scaled)
    def _(network: Scaled) -> dict[str, nn.Module]:
        return {"trunk": network.features, "pool": Twice(), "head": nn.Sequential(network.fc)}

    assert stages(build("scaled", 3)) == ["trunk"]


def test_a_registered_network_of_another_build(register: Register) -> None:
    register("odd")(lambda **_: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    with pytest.raises(LabError, match="Sequential is not just features"):
        build("odd", 3)
