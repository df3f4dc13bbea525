"""The auto rules: the published recipe at ImageNet's scale, sane values everywhere else."""

import itertools

import numpy as np
import pytest

from sklearn_excb import ExCBEstimator
from sklearn_excb.settings import auto_rules
from sklearn_excb.settings.recipes import RECIPES
from sklearn_excb.settings.resolve import Facts, resolve

DEFAULTS = ExCBEstimator().get_params()
PHOTOS = Facts(auto_rules.IMAGENET, "images", (375, 500), 3)


def test_resnet_recipe_at_imagenet_scale():
    settings = resolve(DEFAULTS, PHOTOS, has_batch_norm=True).as_dict()
    published = {
        "K": 65_536,
        "backbone": "resnet50",
        "image_size": 224,
        "local_size": 96,
        "n_global": 2,
        "n_local": 6,
        "epochs": 400,
        "batch_size": 1024,
        "optimizer": "sgd",
        "learning_rate": 0.6,
        "weight_decay": (1e-4, 1e-4),
        "warmup_epochs": 10.0,
        "teacher_momentum": 0.996,
        "flip": 0.5,
        "smallest_global": (0.26, 0.14),
        "smallest_local": 0.05,
        "head_width": 2048,
    }
    assert {name: settings[name] for name in published} == published
    assert settings["size_momentum"] == pytest.approx(0.999, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("paper")])
def test_recipes_are_what_auto_gives_at_imagenet_scale(name):
    recipe = RECIPES[name]
    chosen = "backbone", "epochs", "settle_passes"  # the last of ours, and not published
    parameters = DEFAULTS | {name: recipe[name] for name in chosen}
    settings = resolve(parameters, PHOTOS, has_batch_norm="resnet" in name).as_dict()
    for key, value in recipe.items():
        expected = (value, value) if key == "weight_decay" and isinstance(value, float) else value
        assert settings[key] == pytest.approx(expected, abs=1e-5), key


@pytest.mark.parametrize(
    ("backbone", "frozen", "short_side", "expected"),
    [
        ("vit_small_patch14_dinov2", True, 32, (126, 42)),
        ("vit_small_patch14_dinov2", True, 500, (224, 98)),
        ("vit_small_patch14_dinov2", False, 64, (70, 28)),
        ("vit_tiny_patch16_224", False, 8, (32, 16)),
        ("resnet18", True, 32, (128, 48)),
        ("cnn", False, 8, (24, 16)),
    ],
)
def test_views_are_whole_patches(backbone, frozen, short_side, expected):
    parameters = DEFAULTS | {"backbone": backbone, "freeze_backbone": frozen}
    facts = Facts(1_000, "images", (short_side, short_side), 3)
    settings = resolve(parameters, facts, has_batch_norm=False)
    assert (settings.image_size, settings.local_size) == expected
    assert settings.image_size <= auto_rules.MOST_ENLARGED * short_side


@pytest.mark.parametrize(
    ("n_samples", "short_side"),
    list(itertools.product((10, 300, 2_000, 60_000, 10**6), (8, 28, 32, 64, 160, 2_000))),
)
def test_rules_give_usable_values(n_samples, short_side):
    facts = Facts(n_samples, "images", (short_side, 2 * short_side), 3)
    settings = resolve(DEFAULTS, facts, has_batch_norm=True)
    assert 2 <= settings.K <= n_samples
    assert 2 <= settings.batch_size <= n_samples
    assert settings.epochs * settings.steps_per_epoch(n_samples) >= 100
    assert 16 <= settings.local_size <= settings.image_size <= 224
    assert all(type(v) in (int, float, str, tuple, bool) for v in settings.as_dict().values())
    assert settings.warmup_epochs < settings.epochs
    assert (
        0
        < settings.smallest_local
        <= settings.smallest_global[1]
        <= settings.smallest_global[0]
        < 1
    )
    assert 0.9 <= settings.teacher_momentum < 1
    assert 0.5 <= settings.size_momentum < 1


def test_rules_grow_with_the_collection():
    sizes = [10**exponent for exponent in range(1, 7)]
    for rule in (
        auto_rules.n_clusters,
        auto_rules.batch_size,
        auto_rules.head_width,
        lambda n: auto_rules.image_size(n, 500),
        lambda n: auto_rules.image_size(n, 500, small_network=True),
    ):
        values = [rule(n) for n in sizes]
        assert values == sorted(values)


@pytest.mark.parametrize(
    ("n_samples", "said", "expected"),
    [
        (2_000, {}, ("cnn", 32)),
        (9_999, {}, ("cnn", 32)),
        (10_000, {}, ("resnet18", 80)),
        (2_000, {"backbone": "cnn"}, ("cnn", 32)),
        (2_000, {"backbone": "resnet18"}, ("resnet18", 64)),
        (2_000, {"pretrained": True}, ("resnet18", 64)),
        (2_000, {"backbone": "vit_tiny_patch16_224"}, ("vit_tiny_patch16_224", 64)),
        (2_000, {"image_size": 96}, ("resnet18", 96)),
    ],
)
def test_few_photos_are_seen_small_by_the_small_network_alone(n_samples, said, expected):
    facts = Facts(n_samples, "images", (160, 213), 3)
    settings = resolve(DEFAULTS | said, facts, has_batch_norm=True)
    assert (settings.backbone, settings.image_size) == expected


def test_what_the_user_says_is_kept():
    said = {
        "K": 7,
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 0.5,
        "n_local": 0,
        "image_size": 48,
    }
    settings = resolve(DEFAULTS | said, PHOTOS, has_batch_norm=True).as_dict()
    assert {name: settings[name] for name in said} == said


def test_a_batch_never_exceeds_the_collection():
    facts = Facts(20, "rows", (0, 0), 4)
    assert resolve(DEFAULTS | {"batch_size": 64}, facts, has_batch_norm=True).batch_size == 20


def test_numbers_of_any_kind_become_pythons():
    said = {"K": np.int64(7), "epochs": np.int32(3), "learning_rate": np.float32(0.5)}
    said |= {"weight_decay": [np.float32(0.25), 0], "teacher_temperature": np.float32(0.5)}
    settings = resolve(DEFAULTS | said, PHOTOS, has_batch_norm=True).as_dict()
    assert settings["weight_decay"] == (0.25, 0.0)
    assert all(type(v) in (int, float, str, tuple, bool) for v in settings.values())


def test_local_views_are_never_larger_than_global_ones():
    assert [auto_rules.local_size(size) for size in (8, 16, 24, 32, 64, 224)] == [
        8,
        16,
        16,
        16,
        32,
        96,
    ]
