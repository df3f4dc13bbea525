"""Where bfloat16 gradients of a convolution are undefined on a CPU, training is in float32."""

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_excb import ExCBEstimator
from sklearn_excb.networks.backbones import build_backbone
from sklearn_excb.networks.bf16_gradients import (
    undefined_gradient,
    undefined_gradients,
    unused_taps,
)

# kernel, stride, pixels a side, padding half the kernel: what differed from float64 by more than a
# tenth with MALLOC_PERTURB_=1, torch 2.14.1 on a CPU with AVX512-BF16; of kernels of 3, 5 and 7,
# strides of 1 and 2, and 1 to 4 pixels
WRONG = [(3, 2, 1), (5, 1, 1), (5, 2, 1), (7, 1, 1), (7, 1, 2), (7, 2, 1)]
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
SMALL = {"backbone": "resnet18", "K": 4, "epochs": 0, "image_size": 32, "device": "cpu"}


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_idle_taps_are_those_without_a_gradient(kernel, stride, dilation):
    for side in range(1, 9):
        for padding in range(dilation * (kernel - 1) + 1):
            if side + 2 * padding < dilation * (kernel - 1) + 1:
                continue
            kernels = torch.ones(1, 1, kernel, 1, dtype=torch.float64, requires_grad=True)
            image = torch.ones(1, 1, side, 1, dtype=torch.float64)
            torch.conv2d(
                image, kernels, None, (stride, 1), (padding, 0), (dilation, 1)
            ).sum().backward()
            assert kernels.grad is not None
            n_idle = int((kernels.grad == 0).sum())
            assert sum(unused_taps(side, kernel, stride, padding, dilation)) == n_idle


@pytest.mark.parametrize(("kernel", "stride", "side"), WRONG)
def test_every_convolution_with_a_wrong_gradient_is_known(kernel, stride, side):
    layer = nn.Conv2d(64, 64, kernel, stride, kernel // 2)
    assert undefined_gradient(layer, torch.zeros(2, 64, side, side))
    assert undefined_gradient(layer, torch.zeros(2, 64, 32, side))
    if stride == 1:
        assert undefined_gradient(
            nn.Conv2d(64, 64, kernel, padding="same"), torch.zeros(2, 64, side, side)
        )


@pytest.mark.parametrize(
    ("layer", "side"),
    [
        (nn.Conv2d(4, 4, 3, 1, 1), 1),
        (nn.Conv2d(4, 4, 3, 2, 1), 2),
        (nn.Conv2d(4, 4, 5, 1, 2), 2),
        (nn.Conv2d(4, 4, 7, 2, 3), 32),
        (nn.Conv2d(4, 4, 5, padding="valid"), 5),
        (nn.Conv2d(4, 4, 5, 1, 2, padding_mode="replicate"), 4),
    ],
)
def test_convolutions_with_right_gradients_are_let_be(layer, side):
    assert not undefined_gradient(layer, torch.zeros(2, 4, side, side))


def test_a_backbone_is_looked_at_as_it_runs_and_left_as_it_was():
    backbone = build_backbone("resnet18", n_channels=3, image_size=64).train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    sizes = {size: torch.zeros(2, 3, size, size) for size in (64, 32, 16)}
    assert undefined_gradients(backbone, [sizes[64], sizes[32]]) is None
    found = undefined_gradients(backbone, [sizes[64], sizes[16]])
    assert found == "a 3x3 convolution with stride 2 on 1x1 pixels"
    assert backbone.training
    assert not any(m._forward_pre_hooks for m in backbone.modules())
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("local_size", "precision"), [(16, "32"), (32, "bf16")])
def test_auto_is_bf16_where_its_gradients_are_defined(monkeypatch, local_size, precision):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    excb = ExCBEstimator(**{**SMALL, "image_size": 64, "local_size": local_size}).fit(IMAGES)
    assert excb.resolved_params_["precision"] == precision


def test_bf16_asked_for_where_its_gradients_are_undefined():
    excb = ExCBEstimator(**SMALL, local_size=16, precision="bf16")
    message = r"precision='bf16'.*views of 16 pixels.*3x3 convolution with stride 2 on 1x1 pixels"
    with pytest.raises(ValueError, match=message):
        excb.fit(IMAGES)
    frozen = build_backbone("resnet18", n_channels=3, image_size=32)  # no gradients in it
    excb.set_params(backbone=frozen, freeze_backbone=True, local_size="auto").fit(IMAGES)
