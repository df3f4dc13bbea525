"""Checkpoints of ExCB and DINO: every tensor of a network, read and used as the releases do.

The files are made here, with their names, shapes and nesting, and random tensors.
"""

import argparse
import copy
import functools
import io
import json
import os
import pickle
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torchvision import transforms as T

from evaluation import OccupancyDisplay, cluster_occupancy
from sklearn_excb import ExCBEstimator, reporting
from sklearn_excb.data.pixels import image_tensor
from sklearn_excb.networks.heads import HeadShape, mlp
from sklearn_excb.storage.torch_files import load_objects
from sklearn_excb.training import teacher_outputs
from sklearn_excb.views.whole_images import whole_images
from tests import published_files as files
from tests.tiers import others_slow

K = 11
LENGTHS = torch.linspace(0.7, 1.3, K)  # of prototypes of DINO
SMALL = {"width": 32}
CASES = {
    "ExCB's ResNet-50": ("resnet50", files.excb, {}),
    "ExCB's ViT-S/16": ("vit_small", files.excb, {}),
    "DINO's ResNet-50": ("resnet50", files.dino, {}),
    "DINO's ViT-S/16": ("vit_small", files.dino, {"lengths": LENGTHS}),
}


@pytest.fixture(autouse=True)
def _no_padding(monkeypatch):
    """Inference fills batches up to 32 images, for the last bits; here they are two."""
    monkeypatch.setattr(teacher_outputs, "_MULTIPLE", 1)


@pytest.fixture(scope="module")
def images():
    """Noise and a gradient, of the size that the short side of a whole image has."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3))
    rise = np.linspace(0, 255, 256)
    gradient = np.stack(np.broadcast_arrays(rise, rise[:, None], rise[::-1]), axis=-1)
    return np.stack([noise, gradient]).astype(np.uint8)


def written(checkpoint, folder, name="checkpoint.pth"):
    file = folder / name
    torch.save(checkpoint, file)
    return file


def read(checkpoint, folder, **parameters):
    return ExCBEstimator.from_checkpoint(written(checkpoint, folder), **parameters)


def embedded(excb, X, embedding):
    return excb.set_params(embedding=embedding).transform(X)


def by_hand(checkpoint, inputs):
    """Features, unit projections, cosines and logits, in float64, from the tensors alone."""
    state = {name.removeprefix("module."): t for name, t in checkpoint["teacher"].items()}
    of_excb = "criterion" in checkpoint
    arch = checkpoint["args"].backbone if of_excb else checkpoint["args"].arch
    if arch == "vit_small":
        features = files.vit_features(files.part(state, "backbone."), inputs)
    else:
        features = files.resnet_features(
            {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")},
            inputs,
            arch,
        )
    layers, last = "head.mlp.", "head.last_layer."
    if of_excb:
        layers, last = "classifier.projector.mlp.", "classifier.centroid_layer."
    activation = torch.relu if of_excb and arch.startswith("resnet") else files.gelu
    projections = files.unit(files.head(files.part(state, layers), features, activation))
    prototypes = files.part(state, last)
    cosines = projections @ files.unit(prototypes["weight_v"]).T
    return features, projections, cosines, cosines * prototypes["weight_g"].T


@functools.cache
def _made(make):
    return make("resnet18", **SMALL)


def small_excb():
    """A ResNet-18 with a narrow head; the tensors are always the same ones."""
    checkpoint = _made(files.excb)
    return checkpoint | {"args": copy.copy(checkpoint["args"])}


def small_dino(lengths=None):
    checkpoint = _made(files.dino)
    if lengths is None:
        return dict(checkpoint)
    return changed(checkpoint, "module.head.last_layer.weight_g", lengths[:, None])


@pytest.mark.parametrize("case", others_slow(CASES))
def test_a_published_network_computes_what_its_tensors_say(case, images, tmp_path):
    arch, make, options = CASES[case]
    checkpoint = make(arch, **options)
    excb = read(checkpoint, tmp_path)
    std = (0.228 if make is files.excb else 0.229, 0.224, 0.225)
    middle = torch.from_numpy(images[:, 16:240, 16:240]).permute(0, 3, 1, 2)
    features, projections, cosines, logits = by_hand(
        checkpoint, files.normalised(middle / 255, std)
    )
    # float32 against float64
    np.testing.assert_allclose(embedded(excb, images, "backbone"), features, rtol=0, atol=2e-5)
    np.testing.assert_allclose(embedded(excb, images, "projection"), projections, rtol=0, atol=1e-6)
    np.testing.assert_allclose(embedded(excb, images, "similarity"), cosines, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(excb.predict(images), logits.argmax(dim=1))
    assert excb.resolved_params_["backbone"] == (
        "resnet50" if arch == "resnet50" else "vit_small_patch16_224"
    )
    assert excb.K == excb.resolved_params_["K"] == K
    assert (excb.image_size, excb.head_width) == (224, 2048)
    assert excb.balancing == ("linear" if make is files.excb else "centering")


def test_lengths_of_prototypes_decide_as_in_dino(images, tmp_path):
    checkpoint = small_dino(lengths=LENGTHS)
    excb = read(checkpoint, tmp_path)
    cosines = embedded(excb, images, "similarity")
    # the cosines lie close together, so the longest wins: another than the nearest
    assert (cosines.argmax(axis=1) != excb.predict(images)).any()
    np.testing.assert_array_equal((cosines * LENGTHS.numpy()).argmax(axis=1), excb.predict(images))
    np.testing.assert_array_equal(excb.cluster_gains_, LENGTHS)
    np.testing.assert_allclose(np.linalg.norm(excb.cluster_centers_, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(reporting.infer(excb, images).labels, excb.predict(images))
    negative = read(small_dino(lengths=-LENGTHS), tmp_path)
    np.testing.assert_array_equal(
        (-cosines * LENGTHS.numpy()).argmax(axis=1), negative.predict(images)
    )


def test_one_length_for_all_is_none(images, tmp_path):
    plain, longer = (
        read(small_dino(lengths=torch.full((K,), length)), tmp_path) for length in (1.0, 1.7)
    )
    np.testing.assert_array_equal(plain.predict(images), longer.predict(images))
    for excb in (plain, longer):
        with pytest.raises(AttributeError, match="No cluster of this ExCBEstimator has a gain"):
            _ = excb.cluster_gains_


def renamed(checkpoint, names, entry="teacher"):
    """The same with other names of tensors: a function of each."""
    return checkpoint | {entry: {names(name): t for name, t in checkpoint[entry].items()}}


def spelt(name):
    return name.replace("weight_g", "parametrizations.weight.original0").replace(
        "weight_v", "parametrizations.weight.original1"
    )


def early(name):
    name = name.replace("backbone.conv1.", "backbone.layer0.0.")
    return name.replace("backbone.bn1.", "backbone.layer0.1.")


def without(checkpoint, *entries):
    return {name: entry for name, entry in checkpoint.items() if name not in entries}


FORMS = {
    "in DDP": lambda c: renamed(c, lambda name: f"module.{name.removeprefix('module.')}"),
    "not in DDP": lambda c: renamed(c, lambda name: name.removeprefix("module.")),
    "parametrizations": lambda c: renamed(c, spelt),
    "early names": lambda c: renamed(c, early),
    "no arguments": lambda c: without(c, "args"),
    "arguments in a dict": lambda c: c | {"args": vars(c["args"])},
    "the teacher alone": lambda c: {"teacher": c["teacher"]},
    "half precision": lambda c: (
        c | {"teacher": {n: t.half() if t.ndim else t for n, t in c["teacher"].items()}}
    ),
    "no predictor": lambda c: (
        c | {"teacher": {n: t for n, t in c["teacher"].items() if ".predictor" not in n}}
    ),
}


@pytest.mark.parametrize("form", others_slow(FORMS, default=4))
@pytest.mark.parametrize("make", [small_excb, pytest.param(small_dino, marks=pytest.mark.slow)])
def test_other_forms_of_the_same_file(make, form, images, tmp_path):
    checkpoint = make()
    found = read(FORMS[form](checkpoint), tmp_path)
    expected = read(checkpoint, tmp_path)
    rounded = 5e-3 if form == "half precision" else 0
    for embedding in ("backbone", "similarity"):
        one, other = (embedded(excb, images, embedding) for excb in (found, expected))
        np.testing.assert_allclose(one, other, rtol=rounded, atol=rounded)


def test_a_file_of_the_old_format_of_torch(images, tmp_path):
    checkpoint = small_excb()
    torch.save(checkpoint, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = ExCBEstimator.from_checkpoint(tmp_path / "old.pth")
    expected = read(checkpoint, tmp_path)
    np.testing.assert_array_equal(found.transform(images), expected.transform(images))


def test_numbers_of_numpy_under_their_old_name_as_in_dinos_files(images, tmp_path):
    file = written(small_dino(), tmp_path)
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(file) as now, zipfile.ZipFile(old, "w") as before:
        for entry in now.infolist():
            content = now.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray\nscalar" in content
                content = content.replace(b"numpy._core.multi", b"numpy.core.multi")
            before.writestr(entry, content)
    found, expected = map(ExCBEstimator.from_checkpoint, (old, file))
    np.testing.assert_array_equal(found.transform(images), expected.transform(images))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    "widths",
    [
        (16, 8),
        pytest.param((8,), marks=pytest.mark.slow),
        pytest.param((12, 16, 8), marks=pytest.mark.slow),
        pytest.param((16, 12, 20, 8), marks=pytest.mark.slow),
    ],
)
def test_heads_of_dino_of_any_depth(widths, batch_norm, tmp_path):
    checkpoint, draw = small_dino(), files.Tensors(5)
    layers = files.mlp(draw, "module.head.mlp", 512, widths, batch_norm)
    if len(widths) == 1:  # not in a Sequential
        layers = {name.replace(".0.", "."): tensor for name, tensor in layers.items()}
    others = {n: t for n, t in checkpoint["teacher"].items() if ".head.mlp." not in n}
    others["module.head.last_layer.weight_v"] = draw.normal(K, 8)
    excb = read(checkpoint | {"teacher": others | layers}, tmp_path)
    features = draw.normal(4, 512)
    p = files.part(layers, "module.head.mlp.")
    p = {f"0.{name}": t for name, t in p.items()} if len(widths) == 1 else p
    with torch.no_grad():
        raw = excb._fitted.teacher.projector(features)
    torch.testing.assert_close(raw.double(), files.head(p, features.double(), files.gelu))
    assert excb.cluster_centers_.shape == (K, 8)
    assert HeadShape.of(mlp(4, HeadShape(widths, batch_norm, "gelu"))).widths == widths
    excb.save(tmp_path / "run")
    again = ExCBEstimator.load(tmp_path / "run")
    assert str(again._fitted.teacher) == str(excb._fitted.teacher)


def test_the_activation_of_excb_is_that_of_its_arguments(tmp_path):
    checkpoint = small_excb()
    assert "ReLU" in str(read(checkpoint, tmp_path)._fitted.teacher.projector)
    checkpoint["args"].mlp_activation = "gelu"
    assert "ReLU" not in str(read(checkpoint, tmp_path)._fitted.teacher.projector)
    checkpoint["args"].mlp_activation = "swish"
    with pytest.raises(ValueError, match=r"args\.mlp_activation='swish' is unknown"):
        read(checkpoint, tmp_path)


@pytest.mark.parametrize("patch", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_a_vit_by_its_tensors_or_by_its_arguments(patch, tmp_path):
    draw = files.Tensors(0)
    checkpoint = small_dino()
    backbone = files.vit_backbone(draw, dim=384, patch=patch)
    teacher = files.prefixed("backbone.", backbone) | files.mlp(
        draw, "head.mlp", 384, (8, 8), False
    )
    teacher |= {
        "head.last_layer.weight_g": torch.ones(K, 1),
        "head.last_layer.weight_v": draw.normal(K, 8),
    }
    expected = f"vit_small_patch{patch}_224"
    for args in (None, argparse.Namespace(arch="deit_small", patch_size=patch)):
        excb = read(checkpoint | {"teacher": teacher, "args": args}, tmp_path)
        assert (excb.backbone, excb.image_size) == (expected, 224)
    wrong = argparse.Namespace(arch="vit_base", patch_size=patch)
    with pytest.raises(ValueError, match=r"do not fit vit_base_patch.*another shape: backbone"):
        read(checkpoint | {"teacher": teacher, "args": wrong}, tmp_path)


# a backbone alone


def alone(checkpoint, prefix=""):
    """A file of f alone, as DINO gives out."""
    names = {name: name.removeprefix("module.") for name in checkpoint["teacher"]}
    return {
        prefix + short.removeprefix("backbone."): checkpoint["teacher"][name]
        for name, short in names.items()
        if short.startswith("backbone.")
    }


@pytest.mark.parametrize("arch", ["resnet18", pytest.param("vit_small", marks=pytest.mark.slow)])
def test_a_backbone_alone_gives_features(arch, images, tmp_path):
    checkpoint = files.dino(arch, **SMALL)
    expected = embedded(read(checkpoint, tmp_path), images, "backbone")
    prefixes = ("", "module.", "backbone.", "module.backbone.") if arch == "resnet18" else ("",)
    for prefix in prefixes:
        excb = read(alone(checkpoint, prefix), tmp_path)
        assert excb.embedding == "backbone"
        np.testing.assert_array_equal(excb.transform(images), expected)
    excb.save(tmp_path / "run")
    again = ExCBEstimator.load(tmp_path / "run")
    np.testing.assert_allclose(again.transform(images), expected, rtol=0, atol=1e-6)
    for each in (excb, again, pickle.loads(pickle.dumps(excb))):
        assert (each.K, each.resolved_params_["K"]) == ("auto", 0)
        assert len(each.get_feature_names_out()) == expected.shape[1]
        assert each._fitted.recipe.std[0] == 0.229
        for ask in (
            lambda each=each: each.predict(images),
            lambda each=each: each.linkage_,
            lambda each=each: each.labels_,
            lambda each=each: embedded(clone_of(each), images, "projection"),
            lambda each=each: embedded(clone_of(each), images, "similarity"),
        ):
            with pytest.raises(AttributeError, match=r"no (clusters|labels_).* it comes from a"):
                ask()
        assert not hasattr(each, "cluster_centers_")


def clone_of(excb):
    """The same, fitted, whose parameters may be changed."""
    return pickle.loads(pickle.dumps(excb))


def test_a_backbone_alone_has_no_other_embedding(tmp_path):
    file = written(alone(small_dino()), tmp_path)
    with pytest.raises(ValueError, match=r"embedding='projection' cannot be used.* backbone alone"):
        ExCBEstimator.from_checkpoint(file, embedding="projection")


def test_the_classifier_of_a_resnet_alone_is_left_out(images, tmp_path):
    file = alone(small_dino())
    expected = read(file, tmp_path).transform(images)
    classifier = {"fc.weight": torch.ones(7, 512), "fc.bias": torch.ones(7)}
    np.testing.assert_array_equal(read(file | classifier, tmp_path).transform(images), expected)


ALONE_WRONG = {
    "a missing tensor": ({"bn1.weight": None}, r"not fit resnet18: missing: bn1\.weight\.$"),
    "an unknown one": ({"mask": torch.ones(3)}, r"not fit resnet18: unknown: mask\.$"),
    "another shape": (
        {"bn1.bias": torch.ones(3)},
        r"another shape: bn1\.bias \(3,\), expected \(64,\)\.$",
    ),
    "no tensor": ({"epoch": 7}, "do not hold finite numbers: epoch"),
    "no stages": ({"layer1.0.conv1.weight": None, "layer1.0.bn1.weight": None}, "missing: layer1"),
    "another network": ({"layer4.2.conv1.weight": torch.ones(1)}, "architecture is unknown"),
}


@pytest.mark.parametrize("wrong", ALONE_WRONG)
def test_what_does_not_fit_in_a_backbone_alone_is_named(wrong, tmp_path):
    changes, message = ALONE_WRONG[wrong]
    file = alone(small_dino()) | changes
    file = {name: tensor for name, tensor in file.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        read(file, tmp_path)


# an estimator like a fitted one


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return read(small_dino(lengths=LENGTHS), tmp_path_factory.mktemp("published"))


def test_attributes(published):
    assert published.history_ == []
    assert published.image_shape_ == (224, 224)
    assert published.n_channels_ == 3
    assert published.skipped_ == []
    assert published.cluster_centers_.shape == (K, 256)
    assert published.resolved_params_["published"]["release"] == "DINO"
    assert published.resolved_params_["published"]["args"]["global_crops_scale"] == [0.25, 1.0]
    assert list(published.get_feature_names_out())[:1] == ["excbestimator0"]


@pytest.mark.parametrize("name", ["labels_", "relative_cluster_sizes_"])
def test_there_are_no_training_samples(published, name):
    assert not hasattr(published, name)
    with pytest.raises(AttributeError, match=rf"no {name}.* without training samples. Use predict"):
        getattr(published, name)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(ExCBEstimator(), name)


def test_groups_are_made_from_the_centroids(published, images):
    tree = published.linkage_
    assert tree.shape == (K - 1, 4)
    assert tree[-1, 3] == K
    assert (published.predict(images, n_groups=1) == 0).all()
    fine, coarse = published.predict(images), published.predict(images, n_groups=4)
    assert ((coarse >= 0) & (coarse < 4)).all()
    assert (published.predict(images, n_groups=K) == fine).all()


def test_the_figure_of_the_paper(published, images, tmp_path):
    labels = published.predict(images)
    occupancy = cluster_occupancy(labels, K)
    assert occupancy.empty_fraction == pytest.approx(1 - len(np.unique(labels)) / K)
    models = {"ExCB": read(small_excb(), tmp_path).predict(images), "DINO": labels}
    assert len(OccupancyDisplay.from_predictions(models, n_clusters=K).lines_) == 2


@pytest.mark.parametrize("how", ["pickle", "joblib", "save"])
@pytest.mark.parametrize("make", others_slow([small_excb, lambda: small_dino(lengths=LENGTHS)]))
def test_it_is_kept(how, make, images, tmp_path):
    published = read(make(), tmp_path, embedding="similarity")
    if how == "pickle":
        again = pickle.loads(pickle.dumps(published))
    elif how == "joblib":
        joblib.dump(published, tmp_path / "estimator")
        again = joblib.load(tmp_path / "estimator")
    else:
        published.save(tmp_path / "run")
        again = ExCBEstimator.load(tmp_path / "run")
    assert again.get_params() == published.get_params()
    assert again.resolved_params_ == published.resolved_params_
    assert (again.image_shape_, again.history_) == ((224, 224), [])
    np.testing.assert_array_equal(again.predict(images), published.predict(images))
    np.testing.assert_allclose(
        again.transform(images), published.transform(images), rtol=0, atol=1e-6
    )
    assert not hasattr(again, "labels_")
    assert hasattr(again, "cluster_gains_") == hasattr(published, "cluster_gains_")
    assert again._fitted.recipe == published._fitted.recipe


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_excb, lambda: small_dino(lengths=-LENGTHS)])
def test_it_is_exported_as_it_predicts(make, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    excb = read(make(), tmp_path)
    excb.export_onnx(tmp_path / "published.onnx", dtype="uint8")
    session = onnxruntime.InferenceSession(tmp_path / "published.onnx")
    photo = np.asarray(photos()[0].convert("RGB"))[None]
    found = session.run(None, {"images": photo.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found[0], excb.transform(photo), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found[1], excb.predict(photo))


def test_a_backbone_alone_is_not_exported_as_clusters(tmp_path):
    backbone = read(alone(small_dino()), tmp_path)
    with pytest.raises(NotFittedError, match="has no clusters, which export_onnx needs"):
        backbone.export_onnx(tmp_path / "backbone.onnx")
    backbone.export_backbone(tmp_path / "backbone.safetensors")
    assert (tmp_path / "backbone.safetensors").exists()


def test_a_fit_trains_anew(images, tmp_path):
    published = read(small_dino(lengths=LENGTHS), tmp_path)
    small = {"K": 2, "backbone": "cnn", "image_size": 16, "head_width": 8, "epochs": 1}
    photos = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    fresh = clone(published)
    with pytest.raises(NotFittedError):
        fresh.predict(images)
    with pytest.raises(ValueError, match="K=11 exceeds n_samples=2"):
        published.fit(images)
    assert published.predict(images).shape == (2,)  # a fit that fails leaves it as it was
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of collapse, in a step
        published.set_params(**small, local_size=16, random_state=0).fit(photos)
    np.testing.assert_array_equal(published.labels_, published.predict(photos))
    assert published.relative_cluster_sizes_.sum() == pytest.approx(2)
    assert not hasattr(published, "cluster_gains_")
    assert "published" not in published.resolved_params_
    assert published._fitted.recipe.whole_filter == "bicubic"


def test_parameters_replace_those_of_the_estimator_but_not_the_network(tmp_path):
    file = written(small_excb(), tmp_path)
    excb = ExCBEstimator.from_checkpoint(
        file, embedding="backbone", n_jobs=2, device="cpu", K=K, backbone="auto", random_state=3
    )
    assert (excb.embedding, excb.n_jobs, excb.device, excb.K) == ("backbone", 2, "cpu", K)
    assert excb.backbone == "resnet18"
    assert excb.resolved_params_["random_state"] == 3
    for name, value in {"K": 12, "backbone": "resnet50", "image_size": 96, "n_channels": 1}.items():
        with pytest.raises(ValueError, match=f"{name}=.* cannot be used: the network of the check"):
            ExCBEstimator.from_checkpoint(file, **{name: value})
    with pytest.raises(ValueError, match="embedding='logits' cannot be used"):
        ExCBEstimator.from_checkpoint(tmp_path / "not even read", embedding="logits")
    with pytest.raises(TypeError, match="temperature"):
        ExCBEstimator.from_checkpoint(file, temperature=1)


def test_global_randomness_is_left_alone(tmp_path):
    file = written(small_excb(), tmp_path)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    ExCBEstimator.from_checkpoint(file)
    assert torch.equal(before, torch.random.get_rng_state())


# from photographs


def photos():
    """Photo-like pictures: smooth, with edges and a little noise."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in ((375, 500), (500, 375), (300, 300), (600, 256), (210, 280)):
        y, x = np.mgrid[:height, :width]
        waves = [127 + 100 * np.sin(x / a + y / b) for a, b in ((19, 31), (40, 17), (23, 90))]
        picture = np.stack(waves, axis=-1) + rng.normal(0, 8, (height, width, 3))
        picture[height // 3 : height // 2, width // 4 : width // 2] = (230, 30, 90)
        made.append(Image.fromarray(picture.clip(0, 255).astype(np.uint8)))
    return made


@pytest.mark.parametrize(
    ("make", "filter_of", "red"),
    [
        (small_excb, T.InterpolationMode.BILINEAR, 0.228),
        (small_dino, T.InterpolationMode.BICUBIC, 0.229),
    ],
)
def test_whole_images_are_prepared_as_the_releases_do(make, filter_of, red, tmp_path):
    excb, checkpoint = read(make(), tmp_path), make()
    prepare = T.Compose(
        [
            T.Resize(256, interpolation=filter_of),
            T.CenterCrop(224),
            T.ToTensor(),
            T.Normalize(files.MEAN, (red, 0.224, 0.225)),
        ]
    )
    theirs = torch.stack([prepare(photo) for photo in photos()])
    recipe = excb._fitted.recipe
    ours = torch.stack(
        [whole_images(image_tensor(photo, 3)[None], recipe)[0] for photo in photos()]
    )
    # Pillow rounds to 256 levels after each of its two passes, ours does not: half a level and,
    # as its bicubic filter has weights of 1.3 in all, 1.3 halves
    levels = 0.5 + (0.65 if filter_of == T.InterpolationMode.BICUBIC else 0.5)
    assert ((ours - theirs).abs().amax() * 0.229 * 255) < levels + 0.05
    # and on the average much less
    assert (ours - theirs).abs().mean() * 0.229 * 255 < 0.4
    _, projections, _, logits = by_hand(checkpoint, theirs.double())
    np.testing.assert_allclose(excb.transform(photos()), projections, rtol=0, atol=4e-4)
    np.testing.assert_array_equal(excb.predict(photos()), logits.argmax(dim=1))


# files that are none, or worse


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Command(Payload):
    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("payload", [Payload, Command])
@pytest.mark.parametrize("where", ["args", "optimizer", "teacher", "everything"])
@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_nothing_in_a_file_is_executed(payload, where, kind, tmp_path):
    made = tmp_path / "made"
    bomb = payload(made)
    checkpoint = {
        "args": {"args": argparse.Namespace(arch=bomb), "teacher": {}},
        "optimizer": {"teacher": {}, "optimizer": [bomb]},
        "teacher": {"teacher": {"backbone.conv1.weight": bomb}},
        "everything": bomb,
    }[where]
    file = tmp_path / "checkpoint.pth"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(checkpoint))
    else:
        torch.save(checkpoint, file, _use_new_zipfile_serialization=kind == "zip")
    # of a plain pickle, torch does not get as far as the name
    named = "" if kind == "pickle" else ".*(open|system)"
    with pytest.raises(ValueError, match=r"they could run code\." + named):
        ExCBEstimator.from_checkpoint(file)
    assert not made.exists()


def test_what_may_be_read_is_as_before(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read(small_excb(), tmp_path)
    assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([argparse.Namespace]):
        read(small_excb(), tmp_path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        torch.load(tmp_path / "checkpoint.pth", weights_only=True)


def test_threads_that_read_do_not_take_from_each_other(tmp_path, monkeypatch):
    file, plain = tmp_path / "full.pth", tmp_path / "plain.pth"
    torch.save({"args": argparse.Namespace(k=1), "w": torch.ones(3)}, file)
    torch.save({"w": torch.ones(3)}, plain)
    before, load = torch.serialization.get_safe_globals(), torch.load

    def slowly(*args, **options):
        time.sleep(0.01)
        found = load(*args, **options)
        time.sleep(0.01)
        return found

    monkeypatch.setattr(torch, "load", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load_objects, [file] * 8))
    assert all(each["args"].k == 1 for each in found)
    assert torch.serialization.get_safe_globals() == before
    monkeypatch.setattr(torch.serialization, "safe_globals", lambda _: pytest.fail("was extended"))
    assert load_objects(plain)["w"].sum() == 3


def test_advice_to_execute_it_after_all_is_not_passed_on(tmp_path):
    torch.save({"teacher": Payload(tmp_path / "made")}, tmp_path / "file")
    with pytest.raises(ValueError, match="cannot be read") as raised:
        ExCBEstimator.from_checkpoint(tmp_path / "file")
    assert "weights_only" not in str(raised.value)
    assert "trust" not in str(raised.value)


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


NO_CHECKPOINTS = {
    "empty": b"",
    "text": b"404 not found",
    "page": b"<!DOCTYPE html><html></html>",
    "zeros": bytes(1000),
    "a number": pickle.dumps(7),
    "an archive": npz(),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(50),
    "noise": np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("content", NO_CHECKPOINTS)
def test_what_is_no_checkpoint(content, tmp_path):
    file = tmp_path / "file.pth"
    file.write_bytes(NO_CHECKPOINTS[content])
    with pytest.raises(ValueError, match=r"file\.pth cannot be"):
        ExCBEstimator.from_checkpoint(file)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.99999])
@pytest.mark.parametrize("new", [True, False])
def test_a_file_that_is_cut_short(share, new, tmp_path):
    file = tmp_path / "file.pth"
    torch.save(small_excb(), file, _use_new_zipfile_serialization=new)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"file\.pth cannot be read as a checkpoint.*truncated"):
        ExCBEstimator.from_checkpoint(file)


def test_a_file_that_is_not_there_or_a_folder_or_a_pipe(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The file .*gone.* does not exist"):
        ExCBEstimator.from_checkpoint(tmp_path / "gone")
    with pytest.raises(IsADirectoryError, match=r"is a folder.*ExCBEstimator\.load"):
        ExCBEstimator.from_checkpoint(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        ExCBEstimator.from_checkpoint(tmp_path / "pipe")


def changed(checkpoint, name, tensor):
    """The same with another tensor of the teacher, or without it."""
    teacher = dict(checkpoint["teacher"])
    if tensor is None:
        del teacher[name]
    else:
        teacher[name] = tensor
    return checkpoint | {"teacher": teacher}


GAIN, DIRECTIONS = "classifier.centroid_layer.weight_g", "classifier.centroid_layer.weight_v"
PROJECTOR = "classifier.projector.mlp."
WRONG = {
    "a list": (lambda c: [c], "the file holds a list, but must hold a dict"),
    "a tensor": (lambda c: torch.zeros(3), "the file holds a Tensor, but must hold a dict"),
    "no teacher": (lambda c: without(c, "teacher"), r"no entry 'teacher', but student, criterion"),
    "nothing": (lambda c: {}, "no entry 'teacher', but nothing"),
    "no tensors": (lambda c: c | {"teacher": [1, 2]}, "'teacher' holds no tensors"),
    "names": (
        lambda c: changed(c, "backbone.x", "y"),
        r"do not hold finite numbers: backbone\.x",
    ),
    "no head": (
        lambda c: (
            c | {"teacher": {n: t for n, t in c["teacher"].items() if n.startswith("backbone.")}}
        ),
        r"neither classifier\.centroid_layer\.\* \(ExCB\) nor head\.last_layer\.\* \(DINO\), but "
        r"backbone\.conv1\.weight, .* more",
    ),
    "no centroids": (
        lambda c: changed(c, DIRECTIONS, None),
        rf"the file has {GAIN}",
    ),
    "no projector": (
        lambda c: c | {"teacher": {n: t for n, t in c["teacher"].items() if PROJECTOR not in n}},
        rf"projector is missing: {PROJECTOR}0\.weight",
    ),
    "a missing tensor": (
        lambda c: changed(c, "backbone.layer2.1.conv1.weight", None),
        r"do not fit resnet18.*missing: backbone\.layer2\.1\.conv1\.weight\.$",
    ),
    "a missing bias": (
        lambda c: changed(c, PROJECTOR + "3.bias", None),
        rf"missing: {PROJECTOR}3\.bias\.$",
    ),
    "another shape": (
        lambda c: changed(c, "backbone.bn1.weight", torch.ones(7)),
        r"of another shape: backbone\.bn1\.weight \(7,\), expected \(64,\)\.$",
    ),
    "other centroids": (
        lambda c: changed(c, DIRECTIONS, torch.ones(K, 7)),
        r"classifier\.centroid_layer\.\* have 7 features, .*projector\.mlp\.\* returns 256\.",
    ),
    "as many lengths": (lambda c: changed(c, GAIN, torch.ones(K + 1, 1)), r"of shape \(12, 1\)"),
    "one centroid": (
        lambda c: changed(changed(c, GAIN, torch.ones(1, 1)), DIRECTIONS, torch.ones(1, 256)),
        r"must have \(K, 1\) and \(K, D\) with K of at least 2",
    ),
    "no direction": (lambda c: changed(c, DIRECTIONS, torch.zeros(K, 256)), "no direction"),
    "an unknown tensor": (
        lambda c: changed(c, "backbone.mask_token", torch.ones(3)),
        r"unknown: backbone\.mask_token",
    ),
    "another head": (
        lambda c: changed(c, "ibot_head.mlp.0.weight", torch.ones(3)),
        r"networks of ExCB do not have: ibot_head\.mlp\.0\.weight",
    ),
    "NaN": (
        lambda c: changed(c, "backbone.bn1.weight", torch.full((64,), torch.nan)),
        r"do not hold finite numbers: backbone\.bn1\.weight\. The training diverged",
    ),
    "complex": (
        lambda c: changed(c, "backbone.bn1.weight", torch.ones(64, dtype=torch.complex64)),
        "do not hold finite numbers",
    ),
    "sparse": (
        lambda c: changed(c, DIRECTIONS, torch.ones(K, 256).to_sparse()),
        "do not hold finite numbers",
    ),
    "an unknown name": (
        lambda c: c | {"args": argparse.Namespace(backbone="xcit_small_12_p16")},
        r"unknown, by args\.backbone='xcit_small_12_p16'\. Known architectures are vit_tiny",
    ),
    "an unknown network": (
        lambda c: without(changed(c, "backbone.layer3.2.conv1.weight", torch.ones(1)), "args"),
        "architecture is unknown, by the tensors",
    ),
}


@pytest.mark.parametrize("wrong", others_slow(WRONG, default=8))
def test_what_does_not_fit_is_named(wrong, tmp_path):
    change, message = WRONG[wrong]
    file = written(change(small_excb()), tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        ExCBEstimator.from_checkpoint(file)
    assert str(file) in str(raised.value)


def test_arguments_that_are_no_arguments_change_nothing(images, tmp_path):
    checkpoint = small_excb()
    expected = read(checkpoint, tmp_path).transform(images)
    odd = [7, "text", torch.ones(3), {}, argparse.Namespace(backbone=torch.ones(2), crop_size="x")]
    for args in odd:
        found = read(checkpoint | {"args": args}, tmp_path)
        np.testing.assert_array_equal(found.transform(images), expected)
        json.dumps(found.resolved_params_["published"], allow_nan=False)
    endless = []
    endless.append(endless)
    args = argparse.Namespace(a=endless, b=float("nan"), c=(1, "x"), d={"e": 1})
    found = read(checkpoint | {"args": args}, tmp_path).resolved_params_["published"]["args"]
    assert found == {"a": [None], "b": "nan", "c": [1, "x"], "d": None}
