"""Embeddings of augmented images: what is drawn and embedded, and a probe that trains on them."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from evaluation import LinearProbe, linear_probe_scores
from sklearn_excb import ExCBEstimator, SkippedImageWarning, augmented_views
from sklearn_excb.data.pixels import to_unit
from sklearn_excb.data.resampling import crop_resize
from sklearn_excb.runtime.philox import uniforms
from sklearn_excb.views.augmentation import normalize
from sklearn_excb.views.multicrop import Operation, ViewKind, draw_attempts, fit_boxes


@pytest.fixture(scope="module")
def images():
    return (load_digits().images[:150] / 16).astype(np.float32)


@pytest.fixture(scope="module")
def excb(images):
    small = {"K": 12, "epochs": 1, "image_size": 16, "local_size": 8, "head_width": 16}
    return ExCBEstimator(**small, embedding="backbone", flip=0.5, random_state=0).fit(images)


def by_hand(excb, images, epoch, rows, *, seed, smallest, flip):
    """Crop, mirror, normalise and embed, image by image, from the draws."""
    recipe, teacher = excb._fitted.recipe, excb._fitted.teacher.eval()
    kind = ViewKind(recipe.global_size, (smallest, 1.0), (0.0,), (0.0,))
    found = []
    for row in rows:
        image = torch.from_numpy(images[row])[None, None]
        attempts = draw_attempts(seed, epoch, np.array([row]), [kind])
        box = torch.from_numpy(fit_boxes(attempts, np.array([images.shape[1:]])))
        view = to_unit(crop_resize(image, box, recipe.global_size))[0]
        if uniforms(seed, epoch, row, 0, Operation.FLIP)[0] < flip:
            view = view.flip(-1)
        with torch.inference_mode():
            view = normalize(view, recipe.mean, recipe.std)
            found.append(teacher.backbone(view)[0].numpy())
    return np.stack(found)


@pytest.mark.parametrize("flip", [None, 0.0])
@pytest.mark.parametrize("smallest", [0.08, 0.5])
def test_views_are_crops_mirrored_or_not_and_nothing_else(excb, images, flip, smallest):
    rows = np.array([5, 149, 0, 77])
    views = augmented_views(excb, images, smallest_area=smallest, flip=flip, random_state=9)
    expected = by_hand(
        excb, images, 3, rows, seed=9, smallest=smallest, flip=0.5 if flip is None else flip
    )
    np.testing.assert_allclose(views(3, rows), expected, atol=1e-4)


def test_a_whole_crop_is_what_transform_sees(excb, images):
    # Digits are square: of the area all, in an aspect ratio that fits only where it is 1.
    views = augmented_views(excb, images, smallest_area=1.0, flip=0.0)
    np.testing.assert_allclose(views(1, np.arange(150)), excb.transform(images), atol=1e-4)


def test_views_are_a_function_of_seed_epoch_and_row(excb, images):
    views = augmented_views(excb, images, random_state=1)
    whole = views(2, np.arange(150))
    np.testing.assert_allclose(views(2, [149, 3, 3]), whole[[149, 3, 3]], atol=1e-5)
    assert np.abs(views(1, [3]) - whole[3]).max() > 1e-3
    other = augmented_views(excb, images, random_state=2)
    assert np.abs(other(2, [3]) - whole[3]).max() > 1e-3
    assert views(1, []).shape == (0, whole.shape[1])


def test_batches_and_readers_do_not_show(excb, images):
    pictures = [Image.fromarray((image * 255).astype(np.uint8)) for image in images[:70]]
    expected = augmented_views(excb, np.stack([np.asarray(p) for p in pictures]))(1, np.arange(70))
    views = augmented_views(excb, pictures)
    assert views._batches.batch_size > 32
    views = replace(views, _batches=replace(views._batches, batch_size=32))  # the last: filled up
    np.testing.assert_allclose(views(1, np.arange(70)), expected, atol=1e-4)


@pytest.mark.parametrize("embedding", ["projection", "similarity"])
def test_embedding_is_that_of_the_estimator(excb, images, embedding):
    other = ExCBEstimator(embedding=embedding)
    other.__dict__ = excb.__dict__ | {"embedding": embedding}
    views = augmented_views(other, images, smallest_area=1.0, flip=0.0)
    np.testing.assert_allclose(views(1, np.arange(9)), other.transform(images[:9]), atol=1e-4)


def test_skipped_images_are_nan(images):
    def png(image):
        file = io.BytesIO()
        Image.fromarray((image * 255).astype(np.uint8)).save(file, "png")
        return file.getvalue()

    files = [png(image) for image in images[:30]]
    files[4] = b"nothing"
    with pytest.warns(SkippedImageWarning):
        excb = ExCBEstimator(K=3, epochs=0, on_error="skip", random_state=0).fit(files)
    found = augmented_views(excb, files)(1, [3, 4, 5])
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]


def test_a_probe_trains_on_augmented_views(excb, images):
    y = load_digits().target[:150]
    embeddings = excb.transform(images)
    views = augmented_views(excb, images, smallest_area=0.6, flip=0.0)
    train, test = np.arange(100), np.arange(100, 150)
    scores = linear_probe_scores(
        embeddings[train], y[train], embeddings[test], y[test], views=views, epochs=10
    )
    assert scores.solver == "sgd"
    assert scores.top1 > 0.5
    plain = LinearProbe("sgd", epochs=10, random_state=0).fit(embeddings[train], y[train])
    augmented = LinearProbe(epochs=10, random_state=0).fit_views(views, embeddings[train], y[train])
    assert np.abs(plain.coef_ - augmented.coef_).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smallest_area": 0.0}, r"smallest_area=0.0 .* must be a number in \(0, 1\]"),
        ({"smallest_area": 1.5}, "smallest_area=1.5"),
        ({"flip": -0.1}, r"flip=-0.1 .* a probability in"),
        ({"X": np.ones((4, 3))}, "X holds 2-D rows"),
    ],
)
def test_bad_input_is_explained(excb, images, changes, message):
    arguments = {"X": images} | changes
    with pytest.raises(ValueError, match=message):
        augmented_views(excb, **arguments)


def test_rows_have_no_augmented_views():
    rows = np.random.default_rng(0).normal(size=(40, 5))
    excb = ExCBEstimator(K=3, epochs=0, random_state=0).fit(rows)
    with pytest.raises(ValueError, match="augmented views need images"):
        augmented_views(excb, rows)
