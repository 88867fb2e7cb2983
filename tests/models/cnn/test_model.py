"""Every architecture: its size, its smallest image, its heads, and the same answers after saving and loading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel, SiglipConfig, SiglipModel

from vlm_detect.errors import UserError
from vlm_detect.models.cnn.architectures import ARCHITECTURES
from vlm_detect.models.cnn.backbones import RESNETS, backbone_config, neighbour_residual
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.model import CnnForDetection, head_loss, new_model

HEADS = {"verdict": ["real", "generated"], "object": ["cat", "dog", "frog"]}
OWN = [name for name in ARCHITECTURES if name != "frozen"]
TINY_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}


def pixels_of(size: int, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, size, size, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)


def make(arch: str, size: int, **options) -> CnnForDetection:
    stem = "small" if size < 64 else "imagenet"
    return new_model(CnnConfig(**{"arch": arch, "image_size": size, "heads": HEADS, "stem": stem, **options}))


@pytest.mark.parametrize("arch", OWN)
def test_the_smallest_size_works_and_one_less_is_refused_in_one_line(arch):
    smallest = ARCHITECTURES[arch].smallest
    logits = make(arch, smallest).eval()(pixels_of(smallest))
    assert {head: tuple(values.shape) for head, values in logits.items()} == {"verdict": (2, 1), "object": (2, 3)}
    with pytest.raises(UserError, match=f"at least {smallest} pixels a side, these have {smallest - 1}"):
        make(arch, smallest - 1)


def test_flux_needs_its_stated_smallest_size():
    trunk = make("flux", 33).trunk
    with pytest.raises(RuntimeError, match="too small"):
        trunk(torch.zeros(1, 3, 32, 32))


def test_mai_at_200_pixels_has_the_published_layers():
    trunk: Any = make("mai", 200).trunk
    linear = [module for module in trunk.neck if isinstance(module, torch.nn.Linear)]
    assert [layer.in_features for layer in linear] == [40_000, 120]
    assert trunk.width == 30


@pytest.mark.parametrize(
    ("arch", "channels", "neck"),
    [
        ("flux", [32, 64, 128, 256, 512], [1024, 256]),
        ("flux_small", [32, 64, 128, 256, 512], [1024, 256]),
        ("fakenet", [64, 128, 256, 256, 256], [128]),
        ("fakenet2", [64, 128, 256], [128]),
        ("fakenet3", [64, 64, 128, 128, 256, 256], [128]),
    ],
)
def test_widths_are_the_published_ones(arch, channels, neck):
    trunk = make(arch, 64).trunk
    assert [m.out_channels for m in trunk.maps.modules() if isinstance(m, torch.nn.Conv2d)] == channels
    assert [m.out_features for m in trunk.neck.modules() if isinstance(m, torch.nn.Linear)] == neck


@pytest.mark.parametrize("arch", ["fakenet2", "npr"])
def test_a_saved_network_answers_as_before(arch, tmp_path):
    model = make(arch, 16, view="invert_saturate", saturation=500.0)
    model.train()(pixels_of(16, 8))  # moves the batch norms' means
    model.eval().save_pretrained(tmp_path)
    again = CnnForDetection.from_pretrained(tmp_path).eval()
    for head, values in model(pixels_of(16)).items():
        torch.testing.assert_close(again(pixels_of(16))[head], values)


def test_channels_last_input_gives_the_same_output():
    model = make("fakenet2", 32).eval()
    pixels = pixels_of(32)
    for head, values in model(pixels.contiguous()).items():
        torch.testing.assert_close(model(pixels)[head], values, rtol=1e-4, atol=1e-5)


def test_resnet18_is_the_published_one():
    ours = make("resnet18", 64).trunk.maps.resnet
    assert sum(p.numel() for p in ours.parameters()) == 11_176_512  # torchvision's 11,689,512 less its 1000 classes
    assert RESNETS["resnet50"]["depths"] == [3, 4, 6, 3]


def test_backbone_weights_are_loaded_and_a_small_stem_is_new(tmp_path):
    ResNetModel(ResNetConfig(**TINY_RESNET)).save_pretrained(tmp_path)
    stored = ResNetModel.from_pretrained(tmp_path).state_dict()
    for stem, own_stem in (("imagenet", False), ("small", True)):
        config = CnnConfig(
            arch="resnet18", image_size=32, heads=HEADS, stem=stem, backbone_config=backbone_config(str(tmp_path))
        )
        state = new_model(config, str(tmp_path)).trunk.maps.resnet.state_dict()
        same = [name for name, value in stored.items() if torch.equal(state[name], value)]
        assert (len(same) < len(stored)) == own_stem
        assert all("embedder" in name for name in stored if name not in same)


@pytest.mark.parametrize("kind", ["dinov2", "siglip"])
def test_only_the_heads_of_a_frozen_vision_model_are_trained(kind, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    if kind == "dinov2":
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path)
    else:
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        SiglipModel(SiglipConfig(text_config=text, vision_config={**sizes, "intermediate_size": 8})).save_pretrained(
            tmp_path
        )
    config = CnnConfig(
        arch="frozen", image_size=28, heads=HEADS, backbone_config=backbone_config(str(tmp_path)), tune="head"
    )
    model = new_model(config, str(tmp_path)).train()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"heads"}
    assert not model.trunk.maps.training
    for size, side in ((28, 2), (42, 3)):  # its own size and another
        maps = model.trunk.maps(model.prepare(pixels_of(size)))
        assert maps.shape == (2, 16, side, side)  # class and register tokens left out
    model.save_pretrained(tmp_path / "run")
    again = CnnForDetection.from_pretrained(tmp_path / "run").eval()
    torch.testing.assert_close(again(pixels_of(28))["verdict"], model.eval()(pixels_of(28))["verdict"])


def test_an_unknown_id_is_one_line(tmp_path):
    with pytest.raises(UserError, match="--weights"):
        backbone_config(str(tmp_path / "nothing"))


def test_the_residual_is_the_difference_from_the_first_of_each_block():
    image = torch.rand(1, 1, 5, 4)
    got = neighbour_residual(image)
    assert got.shape == (1, 1, 4, 4)
    for y in range(4):
        for x in range(4):
            assert got[0, 0, y, x] == pytest.approx(
                float(image[0, 0, y, x] - image[0, 0, y // 2 * 2, x // 2 * 2]) * 2 / 3, abs=1e-6
            )


def test_the_loss_of_one_logit_is_binary_cross_entropy_and_unknown_targets_do_not_count():
    logits, targets = torch.randn(5, 1), torch.tensor([0, 1, 1, -1, 0])
    known = targets >= 0
    expected = F.binary_cross_entropy_with_logits(logits[known, 0], targets[known].float())
    torch.testing.assert_close(head_loss(logits, targets), expected)
    assert head_loss(torch.randn(2, 3), torch.tensor([-1, -1])) == 0
