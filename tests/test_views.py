"""Views against torchvision: each operation on the same parameters, each draw in distribution."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from sklearn_excb.data.resampling import crop_resize, resize_weights
from sklearn_excb.views import color
from sklearn_excb.views.augmentation import finish_views
from sklearn_excb.views.multicrop import (
    ViewKind,
    ViewRecipe,
    draw_attempts,
    draw_views,
    fit_boxes,
)
from sklearn_excb.views.whole_images import whole_images

IMAGES = torch.rand(6, 3, 21, 17, generator=torch.Generator().manual_seed(0))
RECIPE = ViewRecipe(32, 16, 2, 4, (0.5, 0.3), 0.1, (0.5,) * 3, (0.25,) * 3, flip=0.5)


def each(operation, values):
    return torch.stack([operation(i, float(v)) for i, v in zip(IMAGES, values, strict=True)])


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (color.adjust_brightness, F.adjust_brightness, 0.0, 2.0),
        (color.adjust_contrast, F.adjust_contrast, 0.0, 2.0),
        (color.adjust_saturation, F.adjust_saturation, 0.0, 2.0),
        (color.adjust_hue, F.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour_operations_equal_torchvisions(ours, theirs, low, high):
    values = torch.linspace(low, high, len(IMAGES))
    torch.testing.assert_close(ours(IMAGES, values), each(theirs, values), rtol=0, atol=2e-6)


def test_blur_gray_and_solarise_equal_torchvisions():
    sigma = torch.linspace(0.3, 2.0, len(IMAGES))
    theirs = each(lambda image, s: F.gaussian_blur(image, 9, s), sigma)
    torch.testing.assert_close(color.gaussian_blur(IMAGES, sigma, 4), theirs, rtol=0, atol=2e-6)
    theirs = F.rgb_to_grayscale(IMAGES, num_output_channels=3)
    torch.testing.assert_close(color.grayscale(IMAGES), theirs, rtol=0, atol=2e-6)
    theirs = F.solarize(IMAGES, 128 / 255)
    torch.testing.assert_close(color.solarize(IMAGES), theirs)


def test_jitter_applies_the_operations_in_each_images_own_order():
    generator = torch.Generator().manual_seed(1)
    factors = 0.6 + 0.8 * torch.rand(len(IMAGES), 4, generator=generator)
    factors[:, 3] = torch.linspace(-0.1, 0.1, len(IMAGES))
    order = np.stack([torch.randperm(4, generator=generator).numpy() for _ in IMAGES])
    theirs = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    expected = []
    for image, factor, sequence in zip(IMAGES, factors, order, strict=True):
        for number in sequence.tolist():
            image = theirs[number](image, float(factor[number]))
        expected.append(image)
    before = IMAGES.clone()
    actual = color.jitter(IMAGES, factors, order)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=5e-6)
    assert torch.equal(before, IMAGES)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_operations_that_mix_colours_leave_other_images_alone(channels):
    images = torch.rand(3, channels, 8, 8)
    one = torch.ones(3)
    assert torch.equal(color.adjust_hue(images, 0.3 * one), images)
    assert torch.equal(color.adjust_saturation(images, 0.5 * one), images)
    assert torch.equal(color.grayscale(images), images)
    assert color.adjust_contrast(images, 0.5 * one).shape == images.shape


@pytest.mark.parametrize("size", [8, 32])
def test_crops_equal_torchvisions_antialiased_bicubic(size, monkeypatch):
    boxes = torch.tensor([[[0, 0, 21, 17]] * 6, [[3, 5, 11, 9]] * 6, [[10, 0, 4, 17]] * 6])
    expected = torch.stack(
        [
            F.resized_crop(
                IMAGES, *box[0].tolist(), size=[size, size], interpolation=3, antialias=True
            )
            for box in boxes
        ]
    ).clamp(0, 1)
    torch.testing.assert_close(crop_resize(IMAGES, boxes, size), expected, rtol=0, atol=2e-6)
    monkeypatch.setattr("sklearn_excb.data.resampling._MATRIX_LIMIT", 0)  # one by one
    torch.testing.assert_close(crop_resize(IMAGES, boxes, size), expected, rtol=0, atol=2e-6)


def test_integer_pixels_are_scaled_to_the_unit_interval():
    boxes = torch.tensor([[[0, 0, 4, 4]]])
    for dtype, white in ((torch.uint8, 255), (torch.uint16, 65535)):
        images = torch.full((1, 1, 4, 4), white, dtype=dtype)
        torch.testing.assert_close(crop_resize(images, boxes, 4), torch.ones(1, 1, 1, 4, 4))


def test_weights_of_a_resize_sum_to_one_inside_the_segment():
    weights = resize_weights(torch.tensor([2]), torch.tensor([5]), 12, 3)[0]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    assert weights[:, :2].abs().max() == 0
    assert weights[:, 7:].abs().max() == 0


@pytest.mark.parametrize("shape", [(40, 60), (32, 32)])
@pytest.mark.parametrize("scale", [(0.05, 0.3), (0.3, 1.0)])
def test_crop_boxes_are_distributed_as_torchvisions(shape, scale):
    n = 10_000
    kind = ViewKind(16, scale, (0.0,), (0.0,))
    attempts = draw_attempts(0, 1, np.arange(n), [kind])
    ours = fit_boxes(attempts, np.tile(shape, (n, 1)))[0]
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(16, scale=scale)
    image = torch.zeros(1, *shape)
    params = [transform.make_params([image]) for _ in range(n)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= shape[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= shape[1]).all()
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)]
    ratios = [boxes[:, 3] / boxes[:, 2] for boxes in (ours, theirs)]
    assert stats.ks_2samp(*areas).pvalue > 1e-3
    assert stats.ks_2samp(*ratios).pvalue > 1e-3


def test_every_probability_and_strength_is_that_of_the_recipe():
    n = 10_000
    kinds = RECIPE.kinds(0.0)
    views = [draw_views(0, 1, np.arange(n), kind, RECIPE) for kind in kinds]

    def share(drawn, p):
        assert stats.binomtest(int(drawn.sum()), n, p).pvalue > 1e-3

    for drawn in views:
        for view in range(len(drawn.flip)):
            share(drawn.flip[view], 0.5)
            share(drawn.jitter[view], 0.8)
            share(drawn.gray[view], 0.2)
            for first in range(4):
                share(drawn.jitter_order[view, :, 0] == first, 0.25)
            for number, strength in enumerate((0.4, 0.4, 0.2, 0.1)):
                centre = 0 if number == 3 else 1
                expected = stats.uniform(centre - strength, 2 * strength)
                factors = drawn.jitter_factors[view, :, number]
                assert stats.kstest(factors, expected.cdf).pvalue > 1e-3
    first, second = (views[0].blur[v] for v in (0, 1))
    assert first.sum() == 0
    share(second, 0.9)
    share(views[0].solarize[1], 0.2)
    assert views[0].solarize[0].sum() == views[1].solarize.sum() == views[1].blur.sum() == 0


def views_of(images, rows, kind, *, seed=1, epoch=2):
    shapes = np.tile(images.shape[-2:], (len(images), 1))
    attempts = draw_attempts(seed, epoch, rows, [kind])
    boxes = torch.from_numpy(fit_boxes(attempts, shapes))
    drawn = draw_views(seed, epoch, rows, kind, RECIPE)
    return finish_views(crop_resize(images, boxes, kind.size), drawn, RECIPE)


def test_a_view_depends_on_its_row_only():
    images = torch.rand(8, 3, 24, 24)
    rows = np.array([5, 90, 3, 41, 7, 8, 77, 0])
    for kind in RECIPE.kinds(0.5):
        whole = views_of(images, rows, kind)
        part = views_of(images[[6, 1]], rows[[6, 1]], kind)
        torch.testing.assert_close(part, whole[:, [6, 1]], rtol=0, atol=1e-6)
        alone = views_of(images, rows, kind.only(1))
        torch.testing.assert_close(alone[0], whole[1], rtol=0, atol=1e-6)


def test_views_of_one_image_differ_and_epochs_differ():
    images, kind = torch.rand(1, 3, 24, 24), RECIPE.kinds(0.5)[1]
    crops = torch.cat([views_of(images, np.array([0]), kind, epoch=e) for e in (1, 2)])
    distances = torch.cdist(crops.flatten(1), crops.flatten(1)) + torch.eye(len(crops)) * 9
    assert distances.min() > 1e-3


def test_the_smallest_global_crop_follows_its_cosine():
    assert RECIPE.kinds(0.0)[0].scale == (0.5, 1.0)
    assert RECIPE.kinds(1.0)[0].scale == (pytest.approx(0.3), 1.0)
    assert RECIPE.kinds(0.5)[1].scale == (0.1, pytest.approx(0.4))


def whole(images, size):
    resized = F.resize(images, [size], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    return F.center_crop(resized, [size, size])


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (20, 60), (20, 210), (400, 40), (1, 300)])
def test_inference_sees_the_centre_whatever_the_length(shape):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    expected = whole(images, 32).clamp(0, 1)
    found = whole_images(images, RECIPE) * 0.25 + 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_no_crop_is_enlarged_when_the_short_side_has_what_crops_need():
    side = RECIPE.side_for_crops
    for progress in (0.0, 0.5, 1.0):
        for kind in RECIPE.kinds(progress):
            assert side * np.sqrt(kind.scale[0]) >= kind.size
    assert side < 2 * 32 / np.sqrt(0.3)
