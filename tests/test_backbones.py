"""Backbones by name: each takes a training step; what is unknown is told what is near."""

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_excb import ExCBEstimator
from sklearn_excb.networks.backbones import build_backbone, output_dim

PHOTOS = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
LARGE = [
    "resnet50",
    "torchvision:resnet50",
    "vit_small_patch16_224",
    "convnext_atto",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "regnetx_002",
    "deit_tiny_patch16_224",
]
NAMES = [
    "resnet18",
    "torchvision:resnet18",
    "vit_tiny_patch16_224",
    *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE),
    nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
]


class Viewing(nn.Sequential):
    """A module that works only where channels do not lie last."""

    def forward(self, x):
        return super().forward(x).view(len(x), -1)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_module_may_view_what_it_computes(n_channels):
    layers = nn.Conv2d(n_channels, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1)
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, n_channels), dtype=np.uint8)
    backbone = Viewing(*layers, nn.AdaptiveAvgPool2d(2))
    excb = ExCBEstimator(K=2, backbone=backbone, epochs=1, batch_size=8, random_state=0)
    assert excb.fit(images).transform(images).shape == (40, 256)


@pytest.mark.parametrize("backbone", NAMES, ids=lambda b: b if isinstance(b, str) else "module")
def test_builds_by_name_and_takes_a_step_at_64_pixels(backbone):
    excb = ExCBEstimator(K=2, backbone=backbone, epochs=1, batch_size=4, n_local=2, random_state=0)
    excb.set_params(warmup_epochs=0, teacher_momentum=0.5, head_width=16)
    before = ExCBEstimator(**excb.get_params()).set_params(epochs=0).fit(PHOTOS)
    excb.fit(PHOTOS)
    assert np.isfinite(excb.history_[1]["loss"])
    assert excb.resolved_params_["image_size"] == 64
    pairs = zip(before._fitted.teacher.parameters(), excb._fitted.teacher.parameters(), strict=True)
    moved = [not torch.equal(start, end) for start, end in pairs]
    assert np.mean(moved) > 0.5  # all but what has no gradient, or one too small for the average
    assert np.isfinite(excb.set_params(embedding="backbone").transform(PHOTOS)).all()


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("n_channels", [1, 5])
def test_other_numbers_of_channels(name, n_channels):
    backbone = build_backbone(name, n_channels=n_channels, image_size=32)
    assert output_dim(backbone, [torch.zeros(2, n_channels, 32, 32)]) > 0


def test_the_last_gain_of_residual_blocks_starts_at_zero():
    for name, gain in (("resnet18", "bn2"), ("torchvision:resnet18", "bn2")):
        backbone = build_backbone(name, n_channels=3, image_size=64)
        assert backbone.get_submodule(f"layer1.0.{gain}").weight.abs().max() == 0


def test_the_users_module_is_left_as_it_was():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4), nn.BatchNorm1d(4))
    module.append(nn.Linear(4, 4))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    excb = ExCBEstimator(K=2, backbone=module, epochs=1, batch_size=4, n_local=0, random_state=0)
    excb.fit(PHOTOS)
    assert excb.backbone is module
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", r"Unknown backbone 'resnet51'. Did you mean .*'resnet50'"),
        ("torchvision:resnet51", r"Did you mean .*'torchvision:resnet50'"),
        ("small_cnn", r"A backbone is 'auto', one of 'cnn', 'identity', 'mlp'"),
    ],
)
def test_unknown_names_are_told_what_is_near(name, message):
    with pytest.raises(ValueError, match=message):
        ExCBEstimator(K=2, backbone=name, epochs=1).fit(PHOTOS)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(3, 8, 3), r"must map images .* to \(2, 8, 62, 62\).*nn\.Flatten"),
        (nn.Sequential(nn.Flatten(), nn.Linear(10, 4)), r"fails on .*\(2, 3, 64, 64\)"),
        (nn.Flatten(), r"returns \[12288, 3072\] features .*AdaptiveAvgPool2d"),
    ],
)
def test_modules_that_do_not_fit_say_what_is_needed(module, message):
    with pytest.raises(ValueError, match=message):
        ExCBEstimator(K=2, backbone=module, epochs=1).fit(PHOTOS)


@pytest.mark.parametrize(
    ("backbone", "X", "message"),
    [
        ("resnet18", PHOTOS.reshape(4, -1) / 255, "takes images, but X holds 2-D rows"),
        ("mlp", PHOTOS, "takes 2-D rows, but X holds images"),
        ("identity", PHOTOS, "takes 2-D rows, but X holds images"),
    ],
)
def test_rows_and_images_have_their_own_backbones(backbone, X, message):
    with pytest.raises(ValueError, match=message):
        ExCBEstimator(K=2, backbone=backbone, epochs=1).fit(X)


def test_the_small_cnn_is_wider_for_larger_images():
    small, large = (build_backbone("cnn", n_channels=1, image_size=s) for s in (24, 48))
    assert output_dim(small, [torch.zeros(2, 1, 24, 24)]) == 32 * 24
    assert output_dim(large, [torch.zeros(2, 1, 48, 48)]) == 32 * 48


def test_the_small_cnn_tells_where_something_is():
    cnn = build_backbone("cnn", n_channels=1, image_size=32).eval()
    corners = torch.zeros(2, 1, 32, 32)
    corners[0, 0, :8, :8] = 1
    corners[1, 0, -8:, -8:] = 1
    with torch.no_grad():
        moved = (cnn(corners) - cnn(torch.zeros(1, 1, 32, 32))).abs().view(2, -1, 2, 2).sum(1)
    assert moved[0].argmax() == 0
    assert moved[1].argmax() == 3
