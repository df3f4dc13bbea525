"""Exported files against predict and transform: in onnxruntime, in timm, in torchvision."""

import json
import os
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError
from torch import nn

from sklearn_excb import ExCBEstimator
from sklearn_excb.cli.commands import main
from sklearn_excb.networks.backbones import RowMLP, SmallCNN
from sklearn_excb.saving import export
from sklearn_excb.saving.traceable import EndToEnd, WholeImages, _rounded
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.row_views import standardize
from sklearn_excb.views.whole_images import whole_images

SMALL = {"K": 6, "epochs": 2, "batch_size": 32, "n_local": 0, "head_width": 16, "random_state": 0}
DIGITS = (load_digits().images[:120] / 16).astype(np.float32)
ROWS, _ = make_blobs(120, centers=6, n_features=5, random_state=0)
COLOUR = np.random.default_rng(0).integers(0, 256, (24, 20, 30, 3), dtype=np.uint8)


def small(**parameters):
    return ExCBEstimator(**(SMALL | parameters))


def recipe(size):
    half = (0.5, 0.4)
    return ViewRecipe(size, size // 2, 2, 0, half, 0.2, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), flip=0)


def session_of(file):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(session, samples):
    """Outputs by their names."""
    names = [output.name for output in session.get_outputs()]
    inputs = {session.get_inputs()[0].name: np.ascontiguousarray(samples)}
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_same(session, samples, excb, X, atol=1e-4):
    """What a session makes of samples is what the estimator makes of X."""
    found = run(session, samples)
    assert list(found) == ["embedding", "cluster", "similarity"]
    assert found["cluster"].dtype == np.int64
    assert {found["embedding"].dtype, found["similarity"].dtype} == {np.dtype(np.float32)}
    expected = excb.transform(X)
    atol *= np.abs(expected).max()
    np.testing.assert_allclose(found["embedding"], expected, rtol=0, atol=atol)
    kind = excb.embedding
    similarity = excb.set_params(embedding="similarity").transform(X)
    excb.set_params(embedding=kind)
    np.testing.assert_allclose(found["similarity"], similarity, rtol=0, atol=1e-4)
    second, first = np.sort(similarity, axis=1)[:, -2:].T
    sure = first - second > 1e-4  # of equals, rounding chooses one
    assert sure.any()
    np.testing.assert_array_equal(found["cluster"][sure], excb.predict(X)[sure])


@pytest.fixture(scope="module")
def gray():
    excb = small(batch_size=16).fit(DIGITS)
    assert (excb.relative_cluster_sizes_ > 0).all()
    return excb


@pytest.fixture(scope="module")
def rows():
    excb = small(backbone="mlp").fit(ROWS)
    assert (excb.relative_cluster_sizes_ > 0).all()
    return excb


@pytest.fixture(scope="module")
def gray_session(gray, tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "gray.onnx"
    gray.export_onnx(file)
    return session_of(file)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_gray_images_of_any_number(gray, gray_session, n):
    assert_same(gray_session, DIGITS[:n, None], gray, DIGITS[:n])


@pytest.mark.parametrize("shape", [(8, 8), (40, 31), (9, 100), (130, 17), (1, 3), (300, 401)])
def test_images_of_any_size(gray, gray_session, shape):
    X = np.random.default_rng(0).random((2, *shape), dtype=np.float32)
    assert_same(gray_session, X[:, None], gray, X)


def test_a_file_says_what_it_takes(gray, gray_session):
    (taken,) = gray_session.get_inputs()
    assert (taken.name, taken.type) == ("images", "tensor(float)")
    assert taken.shape == ["n", 1, "height", "width"]
    shapes = [output.shape for output in gray_session.get_outputs()]
    assert shapes == [["n", 256], ["n"], ["n", 6]]
    said = gray_session.get_modelmeta().custom_metadata_map
    assert (said["K"], said["embedding"], said["dtype"]) == ("6", "projection", "float32")
    assert said["sklearn_excb"]
    preparation = json.loads(said["preparation"])
    size = gray.resolved_params_["image_size"]
    assert preparation["centre_crop"] == preparation["resize_short_side"] == size
    assert preparation["mean"] == pytest.approx([DIGITS.mean()], abs=1e-6)


def test_colour_of_uint8_with_features_of_the_backbone(tmp_path):
    excb = small(K=3, epochs=1, batch_size=8, embedding="backbone").fit(COLOUR)
    excb.export_onnx(tmp_path / "colour.onnx", dtype="uint8")
    session = session_of(tmp_path / "colour.onnx")
    assert session.get_inputs()[0].type == "tensor(uint8)"
    for n in (1, 7):
        assert_same(session, COLOUR[:n].transpose(0, 3, 1, 2), excb, COLOUR[:n])


def test_rows_far_from_zero_with_similarities_twice(tmp_path):
    X = ROWS + 1.7e9
    excb = small(embedding="similarity").fit(X)
    excb.export_onnx(tmp_path / "rows.onnx", dtype="float64")
    session = session_of(tmp_path / "rows.onnx")
    assert [taken.name for taken in session.get_inputs()] == ["rows"]
    for n in (1, 2, 7, 120):
        assert_same(session, X[:n], excb, X[:n])


def test_export_is_silent_and_changes_nothing_but_the_file(rows, tmp_path, capfd):
    teacher = rows._fitted.teacher.train()
    next(teacher.parameters()).requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    pieces = [(m.training, type(m)) for m in teacher.modules()]
    grads = [(p.requires_grad, p.device) for p in teacher.parameters()]
    parameters = rows.get_params()
    random = torch.get_rng_state()
    file = tmp_path / "rows.onnx"
    file.write_bytes(b"what was there")
    file.chmod(0o640)
    rows.export_onnx(file)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), random)
    assert rows._fitted.teacher is teacher
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    assert pieces == [(m.training, type(m)) for m in teacher.modules()]
    assert grads == [(p.requires_grad, p.device) for p in teacher.parameters()]
    assert rows.get_params() == parameters
    assert [path.name for path in tmp_path.iterdir()] == ["rows.onnx"]
    assert file.stat().st_mode & 0o777 == 0o640
    assert_same(session_of(file), ROWS[:7].astype(np.float32), rows, ROWS[:7].astype(np.float32))
    # paths of the machine that wrote it are nobody's business
    assert b"end_to_end.py" not in file.read_bytes()


def test_large_weights_lie_beside_the_file_and_move_with_it(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_LARGEST_FILE", 1000)
    (tmp_path / "a").mkdir()
    rows.export_onnx(tmp_path / "a" / "rows.onnx")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"rows.onnx", "rows.onnx.data"}
    shutil.move(tmp_path / "a", tmp_path / "b")
    onnx.checker.check_model(tmp_path / "b" / "rows.onnx")
    X = ROWS[:7].astype(np.float32)
    assert_same(session_of(tmp_path / "b" / "rows.onnx"), X, rows, X)


def test_a_network_that_computes_something_else_is_not_written(rows, tmp_path, monkeypatch):
    file = tmp_path / "rows.onnx"
    file.write_bytes(b"what was there")
    monkeypatch.setattr(export, "standardize", lambda rows, recipe: -standardize(rows, recipe))
    with pytest.raises(RuntimeError, match=r"Nothing was written: .* a different embedding and"):
        rows.export_onnx(file)
    assert file.read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.onnx"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_path_that_onnx_cannot_take_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="is not UTF-8"):
        rows.export_onnx(tmp_path / os.fsdecode(b"caf\xe9.onnx"))
    assert not list(tmp_path.iterdir())


class Undecided(nn.Sequential):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_a_backbone_that_cannot_be_followed_is_named(tmp_path, capfd):
    module = Undecided(nn.Linear(5, 8), nn.BatchNorm1d(8))
    excb = small(backbone=module, epochs=0).fit(ROWS)
    with pytest.raises(ValueError, match=r"Undecided, cannot be exported to ONNX: .*torch.export"):
        excb.export_onnx(tmp_path / "rows.onnx")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_exported_is_refused_at_once(gray, rows, tmp_path, monkeypatch):
    for method in ("export_onnx", "export_backbone"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(small(), method)(tmp_path / "file")
        with pytest.raises(IsADirectoryError, match="is a folder, expected a file"):
            getattr(gray, method)(tmp_path)
        with pytest.raises(FileNotFoundError, match="is not a folder"):
            getattr(gray, method)(tmp_path / "nowhere" / "file")
    with pytest.raises(ValueError, match=r"dtype='float64' .* for images .* 'float32' or 'uint8'"):
        gray.export_onnx(tmp_path / "file", dtype="float64")
    with pytest.raises(ValueError, match=r"dtype='uint8' .* for rows .* 'float32' or 'float64'"):
        rows.export_onnx(tmp_path / "file", dtype="uint8")
    with pytest.raises(ValueError, match="embedding='logits'"):
        small(K=3, epochs=0).fit(ROWS).set_params(embedding="logits").export_onnx(tmp_path / "file")
    for module in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            with pytest.raises(
                ImportError, match=rf"'{module}'.*pip install \"sklearn-excb\[onnx\]\""
            ):
                gray.export_onnx(tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [8, 24, 63, 64, 96])
def test_whole_images_with_sizes_as_tensors(size):
    rng = np.random.default_rng(size)
    prepare = WholeImages(recipe(size))
    shapes = [(1, 1), (1, 9), (size, size), (7 * size, size), (250, 251), (100, 901)]
    for height, width in [*shapes, *rng.integers(1, 200, (40, 2)).tolist()]:
        images = torch.rand(2, 3, height, width)
        # in standard deviations of about a quarter
        torch.testing.assert_close(
            prepare(images), whole_images(images, recipe(size)), rtol=0, atol=2e-5
        )
    images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    torch.testing.assert_close(
        prepare(images), whole_images(images, recipe(size)), rtol=0, atol=2e-5
    )


def test_rounding_is_pythons():
    a, b = torch.meshgrid(torch.arange(400), torch.arange(1, 60), indexing="ij")
    expected = [[round(i / j) for j in range(1, 60)] for i in range(400)]
    assert _rounded(a, b).tolist() == expected


@pytest.mark.parametrize("embedding", ["projection", "backbone", "similarity"])
def test_end_to_end_is_the_estimator(gray, embedding):
    excb = gray.set_params(embedding=embedding)
    fitted = gray._fitted
    network = EndToEnd(WholeImages(fitted.recipe), fitted.teacher, embedding)
    with torch.no_grad():
        found, cluster, _ = network(torch.from_numpy(DIGITS[:, None]))
    expected = excb.transform(DIGITS)
    gray.set_params(embedding="projection")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert (cluster.numpy() == gray.labels_).mean() > 0.98  # of equals, rounding chooses one


def read(file):
    """State, and metadata with what is JSON read."""
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    for name in {"arguments", "preparation"} & set(said):
        said[name] = json.loads(said[name])
    return load_file(file), said


def assert_features(model, excb, X):
    """A module with the exported weights gives what transform does, for prepared images."""
    images = torch.from_numpy(np.atleast_1d(X))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    with torch.no_grad():
        found = model.eval()(whole_images(images, excb._fitted.recipe)).numpy()
    expected = excb.set_params(embedding="backbone").transform(X)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_small_networks_alone(gray, rows, tmp_path):
    file = tmp_path / "backbone.safetensors"
    gray.export_backbone(file)
    state, said = read(file)
    assert said["architecture"] == "SmallCNN"
    assert said["preparation"]["n_channels"] == 1
    cnn = SmallCNN(**said["arguments"])
    cnn.load_state_dict(state)
    assert_features(cnn, gray, DIGITS)
    gray.set_params(embedding="projection")

    rows.export_backbone(file)
    state, said = read(file)
    assert said["architecture"] == "RowMLP"
    mlp = RowMLP(**said["arguments"])
    mlp.load_state_dict(state)
    mean, scale = np.array(said["preparation"]["mean"]), said["preparation"]["scale"]
    with torch.no_grad():
        found = mlp.eval()(torch.from_numpy((ROWS - mean) / scale).float())
    expected = rows.set_params(embedding="backbone").transform(ROWS)
    rows.set_params(embedding="projection")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.safetensors"]


def test_rows_without_a_backbone(tmp_path):
    excb = small().fit(ROWS)
    with pytest.raises(ValueError, match="no backbone to write: rows are features already"):
        excb.export_backbone(tmp_path / "backbone.safetensors")
    assert not list(tmp_path.iterdir())
    excb.export_onnx(tmp_path / "rows.onnx")
    assert_same(session_of(tmp_path / "rows.onnx"), ROWS.astype(np.float32), excb, ROWS)


def test_a_module_of_ones_own_alone(tmp_path):
    tied = nn.Linear(5, 5)
    module = nn.Sequential(tied, nn.BatchNorm1d(5), tied)
    excb = small(backbone=module).fit(ROWS)
    (tmp_path / "beside").touch()
    excb.export_backbone(tmp_path / "own.safetensors")
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1  # whoever may read other files may read this one
    state, said = read(tmp_path / "own.safetensors")
    assert said["architecture"] == "torch.nn.modules.container.Sequential"
    module.load_state_dict(state)
    with torch.no_grad():
        found = module.eval()(standardize(ROWS, excb._fitted.recipe))
    expected = excb.set_params(embedding="backbone").transform(ROWS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "X"), [("resnet10t", DIGITS[:24]), ("test_vit", COLOUR)])
def test_timm_takes_its_weights(name, X, tmp_path):
    timm = pytest.importorskip("timm")
    excb = small(K=3, epochs=0, batch_size=8, backbone=name, image_size=32).fit(X)
    excb.export_backbone(tmp_path / "backbone.safetensors")
    state, said = read(tmp_path / "backbone.safetensors")
    assert (said["library"], said["architecture"]) == ("timm", name)
    model = timm.create_model(name, **said["arguments"])
    model.load_state_dict(state, strict=True)
    assert_features(model, excb, X)
    model = timm.create_model(
        name, **said["arguments"], checkpoint_path=str(tmp_path / "backbone.safetensors")
    )
    assert_features(model, excb, X)


@pytest.mark.parametrize("X", [DIGITS, COLOUR])
def test_torchvision_takes_its_weights(X, tmp_path):
    from torchvision import models

    name = "torchvision:shufflenet_v2_x0_5"
    excb = small(K=3, epochs=0, batch_size=8, backbone=name, image_size=32).fit(X)
    excb.export_backbone(tmp_path / "backbone.safetensors")
    state, said = read(tmp_path / "backbone.safetensors")
    model = models.get_model(said["architecture"], **said["arguments"])
    assert said["identity"] == "fc"
    model.fc = nn.Identity()
    if X is DIGITS:
        assert said["stem"] == "conv1.0"
        model.conv1[0] = nn.Conv2d(1, 24, 3, 2, 1, bias=False)
    else:
        assert "stem" not in said
    model.load_state_dict(state, strict=True)
    assert_features(model, excb, X)


def test_the_command(rows, tmp_path, capsys):
    rows.save(tmp_path / "run")
    files = [tmp_path / "clusters.onnx", tmp_path / "backbone.safetensors"]
    words = ["export", str(tmp_path / "run")]
    assert main(words) == 2
    assert "--onnx FILE or --backbone FILE" in capsys.readouterr().err
    assert main([*words, "--backbone", str(files[1]), "--dtype", "uint8"]) == 2
    assert "--dtype need an ONNX file" in capsys.readouterr().err
    assert main([*words, "--onnx", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    words += ["--onnx", str(files[0]), "--embedding", "backbone", "--backbone", str(files[1])]
    assert main([*words, "--dtype", "float64"]) == 0
    assert capsys.readouterr() == ("", "")
    rows.set_params(embedding="backbone")
    assert_same(session_of(files[0]), ROWS[:5], rows, ROWS[:5])
    rows.set_params(embedding="projection")
    assert len(load_file(files[1])) == len(rows._fitted.teacher.backbone.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("vit_small_patch16_224", 64),
        ("convnext_atto", 64),
        ("efficientnet_b0", 64),
        ("torchvision:resnet18", 64),
    ],
)
def test_larger_networks(name, size, tmp_path, capfd):
    X = np.random.default_rng(0).random((16, size, size + 10, 3), dtype=np.float32)
    excb = small(K=3, epochs=0, batch_size=8, backbone=name, image_size=size).fit(X)
    excb.export_onnx(tmp_path / "large.onnx")
    assert capfd.readouterr() == ("", "")
    session = session_of(tmp_path / "large.onnx")
    for n in (1, 2, 7):
        assert_same(session, X[:n].transpose(0, 3, 1, 2), excb, X[:n])
