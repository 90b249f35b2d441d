"""Segment Anything: files of any architecture that is known, one line for all others, and the real MobileSAM."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("segment_anything")
pytest.importorskip("timm")

from segment_anything.modeling import ImageEncoderViT

from mvtec_lab.errors import LabError
from mvtec_lab.models import sam as module
from mvtec_lab.models import weights
from mvtec_lab.models.sam import Architecture, Sam, load_sam

TINY_VIT = {"embed_dims": [8, 8, 8, 8], "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_sizes": [1, 2, 3, 2]}
TINY = Architecture(TINY_VIT, dim=16, depth=1, width=24, iou_depth=2, iou_width=12, mask_dim=8)
PUBLISHED = (  # the names that MobileSAM's file has
    (r"patch_embed\.conv1\.", "patch_embed.seq.0."),
    (r"patch_embed\.conv2\.", "patch_embed.seq.2."),
    (r"stages\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
    (r"stages\.", "layers."),
    (r"\.conv\.weight$", ".c.weight"),
)


def published(sam: Sam) -> dict[str, torch.Tensor]:
    state = {}
    for name, value in sam.state_dict().items():
        for pattern, old in PUBLISHED if name.startswith("image_encoder.") else ():
            name = re.sub(pattern, old, name)
        state[name] = value
    return state | {"image_encoder.norm_head.weight": torch.ones(8), "image_encoder.head.bias": torch.ones(1000)}


@pytest.fixture
def tiny() -> Sam:
    torch.manual_seed(0)
    return Sam(TINY, 64).eval()


def saved(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def test_a_mobile_sam_of_any_size_is_read_from_its_published_names(tiny: Sam, tmp_path: Path) -> None:
    loaded, name = load_sam(saved(published(tiny), tmp_path / "tiny.pt"), 64)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert loaded.architecture == TINY
    assert not any(p.requires_grad for p in loaded.image_encoder.parameters())
    for ours, theirs in zip(loaded.encode(images), tiny.encode(images), strict=True):
        assert torch.equal(ours, theirs)
    assert [m.shape[1:] for m in loaded.encode(images)] == [(8, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert name.endswith("tiny.pt")


def test_a_vit_is_read_and_takes_images_of_another_size(tiny: Sam, tmp_path: Path) -> None:
    encoder = ImageEncoderViT(
        img_size=64, embed_dim=8, depth=3, num_heads=2, out_chans=16, window_size=2, global_attn_indexes=(1,),
        use_rel_pos=True, norm_layer=module._OF_EVERY_VIT["norm_layer"],
    ).eval()  # fmt: skip
    torch.nn.init.normal_(encoder.pos_embed)
    state = {name: value for name, value in tiny.state_dict().items() if not name.startswith("image_encoder.")}
    path = saved(state | {f"image_encoder.{k}": v for k, v in encoder.state_dict().items()}, tmp_path / "vit.pth")
    loaded, _ = load_sam(path, 64)
    assert loaded.architecture.encoder["global_attn_indexes"] == [1]
    images = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)  # as Maps does: it rounds so
    assert torch.equal(loaded.encode(images)[-1], encoder(images))
    assert load_sam(path, 32)[0].encode(images[..., :32, :32])[-1].shape == (1, 16, 2, 2)


HIERA = {
    "model_name": "sam2_hiera_tiny", "embed_dim": 8, "stages": (1, 2, 1, 1), "global_att_blocks": (2,),
    "window_spec": (4, 4, 4, 4), "global_pos_size": (3, 3),
}  # fmt: skip
TINY_2 = Architecture(HIERA, kind="hiera", dim=16, depth=1, width=24, iou_depth=2, iou_width=12, mask_dim=8)
PUBLISHED_2 = (  # the names that SAM 2's files have
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^image_encoder\.fine\.", "sam_mask_decoder.conv_s"),
    (r"^object_token\.", "sam_mask_decoder.obj_score_token."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^image_encoder\.still$", "no_mem_embed"),
    (r"^image_encoder\.neck\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"\.mlp\.(fc|lin)1\.", ".mlp.layers.0."),
    (r"\.mlp\.(fc|lin)2\.", ".mlp.layers.1."),
)


def published_2(sam: Sam) -> dict[str, dict[str, torch.Tensor]]:
    state = {}
    for name, value in sam.state_dict().items():
        for pattern, old in PUBLISHED_2:
            name = re.sub(pattern, old, name)
        state[name] = value
    return {"model": state | {"memory_encoder.out_proj.weight": torch.ones(1), "no_obj_ptr": torch.ones(1, 16)}}


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Sam:
    """A SAM 2 of a few thousand parameters, whose size is known here."""
    monkeypatch.setitem(module.HIERAS, (8, 5), HIERA)
    torch.manual_seed(0)
    sam = Sam(TINY_2, 64).eval()
    for parameter in sam.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return sam


def test_a_sam_2_is_read_from_its_published_names(second: Sam, tmp_path: Path) -> None:
    loaded, _ = load_sam(saved(published_2(second), tmp_path / "second.pt"), 64)
    assert loaded.architecture == TINY_2
    images = torch.randn(1, 3, 64, 64)
    maps = [each[0] for each in loaded.encode(images)]
    assert [tuple(each.shape) for each in maps] == [(2, 16, 16), (4, 8, 8), (16, 4, 4)]
    assert [each.shape[0] for each in maps] == loaded.channels
    boxes = torch.tensor([[4.0, 4, 20, 30], [30, 30, 60, 60]])
    masks = loaded.decode(maps, boxes=boxes)
    assert torch.equal(masks, second.decode([each[0] for each in second.encode(images)], boxes=boxes))
    assert torch.allclose(masks[1:], loaded.decode(maps, boxes=boxes[1:]), atol=1e-5)


def test_what_a_sam_2_has_more_than_a_sam_changes_its_masks(second: Sam) -> None:
    maps, boxes = [each[0] for each in second.encode(torch.randn(1, 3, 64, 64))], torch.tensor([[4.0, 4, 20, 30]])
    whole = second.decode(maps, boxes=boxes)
    for place in (0, 1):
        other = [torch.randn_like(each) if number == place else each for number, each in enumerate(maps)]
        assert not torch.allclose(second.decode(other, boxes=boxes), whole)
    parts = (second.object_token, second.prompt_encoder.not_a_point_embed)
    with torch.no_grad():
        for part in parts:
            before = part.weight.clone()
            part.weight += 1
            assert not torch.allclose(second.decode(maps, boxes=boxes), whole)
            part.weight.copy_(before)
    assert torch.equal(second.decode(maps, boxes=boxes), whole)


def test_sam_2_computes_what_it_did_when_compared_with_its_authors_code(second: Sam) -> None:
    """Their modules and these gave the same maps, and masks that differ by 4e-7; with these weights it was this."""
    with torch.no_grad():
        maps = [each[0] for each in second.encode(torch.ones(1, 3, 64, 64).cumsum(-1) / 32 - 1)]
        masks = second.decode(maps, boxes=torch.tensor([[4.0, 4, 20, 30]]))
    assert [each.abs().mean().item() for each in maps] == pytest.approx([0.580423, 0.364715, 1.453319], rel=1e-4)
    assert masks[0, ::5, 3].tolist() == pytest.approx([-0.0131017, -0.0130649, -0.0100952, -0.0136699], rel=1e-4)


def test_a_sam_2_of_an_unknown_size_is_one_line(second: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(module.HIERAS, (8, 5))
    with pytest.raises(LabError, match=r"no SAM that is known here .*SAM 2 of 8 channels and 5 blocks"):
        load_sam(saved(published_2(second), tmp_path / "second.pt"), 64)


def test_prompts_of_every_kind_give_a_mask_each(tiny: Sam) -> None:
    maps = [each[0] for each in tiny.encode(torch.randn(1, 3, 64, 64))]
    boxes = torch.tensor([[4.0, 4, 20, 30], [30, 30, 60, 60], [0, 0, 8, 8]])
    masks = tiny.decode(maps, boxes=boxes)
    assert masks.shape == (3, 16, 16)
    assert torch.allclose(masks[1:2], tiny.decode(maps, boxes=boxes[1:2]), atol=1e-5)  # no prompt sees another
    assert not torch.allclose(masks[0], masks[1], atol=1e-5)
    assert tiny.decode(maps, points=torch.tensor([[4.0, 9]])).shape == (1, 16, 16)
    coarse, tokens = torch.randn(1, 1, 16, 16), torch.randn(2, 16)
    assert tiny.decode(maps, masks=coarse, tokens=tokens).shape == (1, 16, 16)


def test_the_encoder_stays_in_eval_mode(tiny: Sam) -> None:
    before = {name: value.clone() for name, value in tiny.image_encoder.state_dict().items()}
    tiny.train().encode(torch.randn(2, 3, 64, 64))
    assert tiny.mask_decoder.training
    assert all(torch.equal(value, before[name]) for name, value in tiny.image_encoder.state_dict().items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"model": {"image_encoder.trunk.pos_embed": torch.ones(1)}},
            "is incomplete, it lacks prompt_encoder and 1 more: give a file of",
        ),
        ({"conv1.weight": torch.ones(1)}, "is no SAM that is known here .*: give a file of MobileSAM"),
        ([1, 2], "is not a state dict: give MobileSAM's mobile_sam.pt"),
        ({"conv1.weight": torch.tensor([float("nan")])}, "holds NaN or infinity in conv1.weight"),
    ],
)
def test_another_architecture_is_one_line(content: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=f"^model.sam_weights=.*file.pt {said}"):
        load_sam(saved(content, tmp_path / "file.pt"))


def test_a_file_that_lacks_or_bends_a_part_is_one_line(tiny: Sam, tmp_path: Path) -> None:
    key = f"^model.sam_weights={tmp_path}/"
    for name in ("mask_decoder.mask_tokens.weight", "mask_decoder.iou_token.weight"):
        state = published(tiny)
        del state[name]
        with pytest.raises(LabError, match=rf"{key}lacks.pt is incomplete, it lacks {name}: give a file of"):
            load_sam(saved(state, tmp_path / "lacks.pt"))
    state = {name: value for name, value in published(tiny).items() if not name.startswith("mask_decoder")}
    with pytest.raises(LabError, match=rf"{key}part.pt is incomplete, it lacks mask_decoder: give a file of"):
        load_sam(saved(state, tmp_path / "part.pt"))
    state = published(tiny) | {"image_encoder.neck.0.weight": torch.ones(3, 3, 1, 1)}
    with pytest.raises(LabError, match=r"known here \(image_encoder.neck.0.weight has the shape \(3, 3, 1, 1\), and"):
        load_sam(saved(state, tmp_path / "bent.pt"))
    with pytest.raises(LabError, match=r"no SAM that is known here \(mask_decoder.other belongs to none\)"):
        load_sam(saved(published(tiny) | {"mask_decoder.other": torch.ones(1)}, tmp_path / "more.pt"))


def test_a_damaged_or_missing_file_and_a_wrong_size_are_one_line(tiny: Sam, tmp_path: Path) -> None:
    path = Path(saved(published(tiny), tmp_path / "tiny.pt"))
    with pytest.raises(LabError, match=r"data.image_size=100 does not suit SAM: give a multiple of 16"):
        load_sam(str(path), 100)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LabError, match=rf"^model.sam_weights={path} is incomplete, its end is missing: copy or fetch"):
        load_sam(str(path))
    content = bytearray(whole)
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(LabError, match=rf"^model.sam_weights={path} is damaged"):
        load_sam(str(path))
    with pytest.raises(LabError, match=r"^model.sam_weights=.*none.pt cannot be read"):
        load_sam(str(tmp_path / "none.pt"))


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(module, "import_module", missing)
    with pytest.raises(LabError, match=r'SAM needs segment_anything .*: pip install "mvtec_lab\[sam\]"'):
        load_sam(None)


def test_the_official_file_is_fetched_once_and_its_digest_compared(
    tiny: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(saved(published(tiny), tmp_path / "mobile_sam.pt"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(weights, "_unreachable", {})
    monkeypatch.setattr(module, "MOBILE_SAM", source.as_uri())
    with pytest.raises(LabError, match=r"mobile_sam.pt cannot be fetched .*: put it into .*, or give model.sam_w"):
        load_sam(None, 64)  # another file than the official one
    monkeypatch.setattr(weights, "_unreachable", {})
    monkeypatch.setattr(module, "MOBILE_SAM_SHA256", hashlib.sha256(source.read_bytes()).hexdigest())
    assert load_sam(None, 64)[1] == "mobile_sam.pt"
    source.unlink()
    assert load_sam(None, 64)[0].architecture == TINY
    kept = next((tmp_path / "home").rglob("mobile_sam.pt"))
    kept.write_bytes(b"something else")
    with pytest.raises(LabError, match=r"is not the file that .* gave .*: delete it, or give model.sam_weights=FILE"):
        load_sam(None, 64)


@pytest.mark.slow
@pytest.mark.skipif("SAM_WEIGHTS" not in os.environ, reason="needs MobileSAM's file (SAM_WEIGHTS)")
def test_the_real_mobile_sam_finds_what_a_box_points_at() -> None:
    """A disc on a plain ground: no untrained network, and none with parts in the wrong places, finds it."""
    sam, _ = load_sam(os.environ["SAM_WEIGHTS"], 512)
    y, x = np.mgrid[:512, :512]
    disc = (y - 200) ** 2 + (x - 300) ** 2 < 90**2
    image = torch.from_numpy(np.where(disc, 1.5, -1.0).astype(np.float32)).expand(1, 3, -1, -1)
    with torch.no_grad():
        maps = [each[0] for each in sam.encode(image)]
        for prompt in ({"boxes": torch.tensor([[210.0, 110, 390, 290]])}, {"points": torch.tensor([[300.0, 200]])}):
            found = sam.decode(maps, **prompt)[0].numpy() > 0
            true = disc[2::4, 2::4]
            assert (found & true).sum() / (found | true).sum() > 0.9
