"""Convolutions of the smallest maps are matrix products, and the same convolutions."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from sklearn_excb.networks.backbones import build_backbone
from sklearn_excb.networks.small_map_convolution import (
    SmallMapConv2d,
    taps_of_pixels,
    with_matrix_products,
)

GEOMETRIES = [
    (sides, kernel, stride, padding, dilation)
    for sides in ((1, 1), (2, 2), (1, 2), (4, 1), (2, 3))
    for kernel in ((3, 3), (5, 3), (7, 7))
    for stride in ((1, 1), (2, 1), (2, 2))
    for padding in ((0, 0), (1, 1), (2, 1), (3, 3))
    for dilation in ((1, 1), (2, 1))
]
# of a ResNet-18 on views of 64 and 32 pixels: channels in and out, stride, pixels a side
RESNET_18 = [(512, 512, 1, 2), (512, 512, 1, 1), (256, 512, 2, 2), (256, 256, 1, 2)]
ORDERS = [torch.channels_last, torch.contiguous_format]


def values(*shape):
    rows = np.random.default_rng(sum(shape)).standard_normal(shape)
    return torch.from_numpy(rows.astype(np.float32))


def convolution(*channels, kernel=3, **arguments):
    return with_matrix_products(nn.Sequential(nn.Conv2d(*channels, kernel, **arguments)))[0]


class Convolved(TorchDispatchMode):
    """Maps that torch convolves, as (height, width)."""

    def __init__(self):
        super().__init__()
        self.maps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default):
            self.maps.append(tuple(args[0].shape[2:]))
        return func(*args, **(kwargs or {}))


def test_taps_are_those_of_the_convolution():
    """A kernel of 1, 2, 3, ... on a single pixel tells by which tap each that comes out sees it."""
    n_found = 0
    for sides, kernel, stride, padding, dilation in GEOMETRIES:
        found = taps_of_pixels(sides, kernel, stride, padding, dilation)
        numbered = torch.arange(1.0, kernel[0] * kernel[1] + 1).view(1, 1, *kernel)
        pixels = torch.eye(sides[0] * sides[1]).view(-1, 1, *sides)
        expected = None
        try:
            seen = torch.conv2d(pixels, numbered, None, stride, padding, dilation)
        except RuntimeError as error:
            assert "greater than actual input size" in str(error)  # noqa: PT017
        else:
            taps = tuple((seen.flatten(1).T.flatten() - 1).int().tolist())
            expected = (*seen.shape[2:], taps) if (seen > 0).all() else None
        assert found == expected, (sides, kernel, stride, padding, dilation)
        n_found += found is not None
    assert len(GEOMETRIES) > n_found > 40


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n_in", "n_out", "stride", "side"), RESNET_18)
def test_values_and_gradients_are_those_of_float64(n_in, n_out, stride, side, bias):
    layer = convolution(n_in, n_out, stride=stride, padding=1, bias=bias)
    exact = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    image = values(5, n_in, side, side).requires_grad_()
    image_64 = image.detach().double().requires_grad_()
    expected = exact(image_64)
    with Convolved() as convolved:
        found = layer(image)
    assert convolved.maps == []
    weights = values(*found.shape)
    of_ours = torch.autograd.grad(found, [image, *layer.parameters()], weights)
    of_exact = torch.autograd.grad(expected, [image_64, *exact.parameters()], weights.double())
    for ours, theirs in zip((found, *of_ours), (expected, *of_exact), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("of_image", ORDERS)
@pytest.mark.parametrize("of_kernel", ORDERS)
@pytest.mark.parametrize("n", [1, 3])
def test_what_comes_out_lies_as_a_convolution_leaves_it(of_image, of_kernel, n):
    """Strides of dimensions of one element say nothing."""
    layer = convolution(8, 16, padding=1).to(memory_format=of_kernel)
    image = values(n, 8, 2, 2).to(memory_format=of_image)
    plain = nn.Conv2d.forward(layer, image)
    found = layer(image)
    for order in ORDERS:
        assert found.is_contiguous(memory_format=order) == plain.is_contiguous(memory_format=order)
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize(
    ("image", "layer"),
    [
        (values(2, 8, 3, 3), convolution(8, 8, padding=1)),
        (values(2, 8, 2, 2), convolution(8, 8, kernel=1)),
        (values(2, 8, 2, 2), convolution(8, 8, kernel=2)),
        (values(2, 8, 2, 2), convolution(8, 8, padding=1, groups=8)),
        (values(2, 8, 2, 2), convolution(8, 8, padding="same")),
        (values(2, 8, 2, 2), convolution(8, 8, padding=1, padding_mode="reflect")),
        (values(2, 8, 4, 1), convolution(8, 8, padding=1)),
        (values(8, 2, 2), convolution(8, 8, padding=1)),
        (values(2, 8, 2, 2).double(), convolution(8, 8, padding=1).double()),
    ],
    ids=["9 pixels", "1x1", "2x2", "depthwise", "same", "reflect", "few", "no batch", "float64"],
)
def test_other_convolutions_are_left_alone(image, layer):
    with Convolved() as convolved:
        found = layer(image)
    assert len(convolved.maps) == 1
    assert torch.equal(found, nn.Conv2d.forward(layer, image))


def test_in_bfloat16_nothing_changes():
    layer = convolution(8, 8, padding=1)
    with Convolved() as convolved, torch.autocast("cpu", torch.bfloat16):
        layer(values(2, 8, 2, 2))
    assert convolved.maps == [(2, 2)]


@pytest.mark.parametrize(
    ("layer", "image"),
    [
        (convolution(8, 8), values(2, 8, 2, 2)),
        (convolution(8, 8, padding=1), values(2, 4, 2, 2)),
    ],
    ids=["larger kernel", "channels"],
)
def test_errors_are_those_of_torch(layer, image):
    with pytest.raises(RuntimeError) as expected:
        nn.Conv2d.forward(layer, image)
    with pytest.raises(RuntimeError) as found:
        layer(image)
    assert str(found.value) == str(expected.value)


def test_subclasses_of_the_convolution_keep_their_class():
    class Own(nn.Conv2d):
        pass

    assert type(with_matrix_products(Own(8, 8, 3))) is Own


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18"])
def test_a_resnet_18_convolves_no_tiny_map_by_a_large_kernel(name):
    backbone = build_backbone(name, n_channels=3, image_size=64).eval()
    plain = copy.deepcopy(backbone)
    for module in plain.modules():
        if isinstance(module, SmallMapConv2d):
            module.__class__ = nn.Conv2d
    for size, n_tiny in ((64, (3, 0)), (32, (8, 1))):  # the one has a kernel of one pixel
        crops = values(6, 3, size, size)
        with torch.inference_mode(), Convolved() as of_plain:
            expected = plain(crops)
        with torch.inference_mode(), Convolved() as of_ours:
            found = backbone(crops)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        n_found = [of.maps.count((2, 2)) + of.maps.count((1, 1)) for of in (of_plain, of_ours)]
        assert tuple(n_found) == n_tiny
    again = pickle.loads(pickle.dumps(backbone))
    assert torch.equal(again(crops), backbone(crops))


def test_activations_can_be_computed_again():
    layer, image = convolution(8, 8, padding=1), values(4, 8, 2, 2).requires_grad_()
    expected = torch.autograd.grad(layer(image).square().sum(), image)
    again = checkpoint(layer, image, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.square().sum(), image)[0], expected[0])


def test_graphs_have_the_convolution():
    layer, image = convolution(8, 8, padding=1).eval(), values(4, 8, 2, 2)
    exported = torch.export.export(layer, (image,))
    assert [n.target for n in exported.graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.conv2d.default
    ]
