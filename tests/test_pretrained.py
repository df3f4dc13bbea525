"""Weights of others: as in their file, images prepared as for them; what is missing is told."""

import socket

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError
from torch import nn
from torchvision import models

from sklearn_excb import ExCBEstimator
from sklearn_excb.exceptions import PretrainedWeightsError
from sklearn_excb.networks import pretrained
from sklearn_excb.networks.backbones import build_backbone
from sklearn_excb.training.build import IMAGENET_MEAN, IMAGENET_STD

NAME = "mobilenetv3_small_050"
HALVES = "tf_mobilenetv3_small_minimal_100"  # trained on images of mean and deviation .5
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of weights of two networks of timm, as timm publishes them: with a classifier."""
    folder, made = tmp_path_factory.mktemp("weights"), {}
    torch.manual_seed(1)
    for name in (NAME, HALVES):
        made[name] = folder / f"{name}.safetensors"
        save_file(timm.create_model(name).state_dict(), made[name])
    return made


def estimator(name, **parameters):
    common = {"K": 4, "epochs": 0, "embedding": "backbone", "random_state": 0, "image_size": 32}
    return ExCBEstimator(backbone=name, **(common | parameters))


def own_features(name, file, images, in_chans=3):
    """Features by timm alone, of images that need no resizing."""
    overlay = {"file": str(file)}
    how = {"num_classes": 0, "in_chans": in_chans, "pretrained_cfg_overlay": overlay}
    model = timm.create_model(name, pretrained=True, **how).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[of])[:, None, None] for of in ("mean", "std"))
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return model((x - mean) / std).numpy()


@pytest.mark.parametrize("name", [NAME, HALVES])
def test_frozen_features_are_those_of_the_library(files, name):
    excb = estimator(name, pretrained=files[name], freeze_backbone=True).fit(IMAGES)
    expected = own_features(name, files[name], IMAGES)
    np.testing.assert_allclose(excb.transform(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_without_freezing_the_weights_are_where_training_starts(files):
    excb = estimator(NAME, pretrained=str(files[NAME])).fit(IMAGES)
    own = timm.create_model(NAME, num_classes=0)
    fresh = dict(estimator(NAME).fit(IMAGES)._fitted.teacher.backbone.named_parameters())
    weights = timm.models.load_state_dict(files[NAME])
    for name, parameter in excb._fitted.teacher.backbone.named_parameters():
        assert torch.equal(parameter, weights[name]), name
        if parameter.ndim > 1:
            assert not torch.equal(parameter, fresh[name])
    assert set(weights) - set(own.state_dict()) == {"classifier.weight", "classifier.bias"}


def test_gray_images_get_weights_fitted_to_them(files):
    gray = IMAGES[..., 0]
    excb = estimator(NAME, pretrained=files[NAME], freeze_backbone=True).fit(gray)
    stem = excb._fitted.teacher.backbone.backbone.conv_stem.weight
    in_file = timm.models.load_state_dict(files[NAME])["conv_stem.weight"]
    torch.testing.assert_close(stem, in_file.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_s_weights_from_a_file(tmp_path, suffix):
    torch.manual_seed(2)
    state = models.resnet18().state_dict()
    file = tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    excb = estimator("torchvision:resnet18", pretrained=file, image_size=64).fit(IMAGES)
    assert torch.equal(excb._fitted.teacher.backbone.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"backbone": "cnn"}, ValueError, "such as backbone='resnet18'"),
        ({"backbone": nn.Flatten()}, ValueError, "A module keeps the weights it has"),
        ({"backbone": "resnet18.nobody"}, ValueError, "Did you mean .*resnet18"),
        ({"backbone": "auto", "pretrained": "w.pth"}, ValueError, "Name the backbone"),
        ({"backbone": "resnet18", "pretrained": "w.pth"}, PretrainedWeightsError, "is not a file"),
        (
            {"backbone": "resnet18.a1_in1k", "pretrained": False},
            ValueError,
            "names pretrained weights",
        ),
        ({"backbone": "resnet18", "pretrained": ""}, ValueError, "the path of a file"),
        (
            {"backbone": "torchvision:resnet18", "n_channels": 1},
            ValueError,
            "Set n_channels=3, which repeats gray",
        ),
    ],
)
def test_what_cannot_be_had_is_told(parameters, error, message):
    excb = ExCBEstimator(**({"K": 4, "pretrained": True, "epochs": 1} | parameters))
    with pytest.raises(error, match=message):
        excb.fit(IMAGES[..., 0] if parameters.get("n_channels") == 1 else IMAGES)
    with pytest.raises(NotFittedError):
        excb.predict(IMAGES)


def test_weights_of_another_network_are_refused(files):
    excb = ExCBEstimator(K=4, backbone="resnet18", pretrained=files[NAME], epochs=1)
    with pytest.raises(PretrainedWeightsError, match="do not fit backbone='resnet18'"):
        excb.fit(IMAGES)


def changed(file, *, left_out=(), added=()):
    state = timm.models.load_state_dict(file)
    state = {name: weight for name, weight in state.items() if not name.startswith(left_out)}
    save_file(state | {name: torch.ones(3, 3) for name in added}, file.with_stem("changed"))
    return file.with_stem("changed")


@pytest.mark.parametrize(
    ("left_out", "added", "message"),
    [
        (("bn1.running_mean",), (), "no weights for bn1.running_mean"),
        (("blocks.0.0.bn1.bias",), (), "no weights for blocks.0.0.bn1.bias"),
        (("conv_head.weight",), (), "no weights for conv_head.weight"),
        ((), ("blocks.0.7.conv.weight",), "the backbone lacks: blocks.0.7.conv.weight"),
    ],
)
def test_files_with_less_or_more_are_refused(files, left_out, added, message):
    file = changed(files[NAME], left_out=left_out, added=added)
    with pytest.raises(PretrainedWeightsError, match=message):
        estimator(NAME, pretrained=file).fit(IMAGES)


def test_heads_beside_the_backbone_do_not_matter(files):
    file = changed(files[NAME], left_out=("classifier",), added=("decoder.weight", "mask_token"))
    excb = estimator(NAME, pretrained=file, freeze_backbone=True).fit(IMAGES)
    expected = own_features(NAME, files[NAME], IMAGES)
    np.testing.assert_allclose(excb.transform(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert "state_dict" not in excb._fitted.teacher.backbone.backbone.pretrained_cfg


def test_a_deeper_network_is_refused(tmp_path):
    file = tmp_path / "resnet26.safetensors"
    save_file(timm.create_model("resnet26").state_dict(), file)
    with pytest.raises(PretrainedWeightsError, match="do not fit backbone='resnet14t'"):
        estimator("resnet14t", pretrained=file).fit(IMAGES)
    file = tmp_path / "resnet34.safetensors"
    save_file(timm.create_model("resnet34").state_dict(), file)
    with pytest.raises(PretrainedWeightsError, match=r"the backbone lacks: layer1\.2"):
        estimator("resnet18", pretrained=file).fit(IMAGES)


def test_transformers_are_translated(tmp_path):
    """Positions are resampled to the size of the images."""
    name = "vit_tiny_patch16_224"
    model = timm.create_model(name)
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    excb = estimator(name, pretrained=tmp_path / "weights.pth").fit(IMAGES)
    state = excb._fitted.teacher.backbone.state_dict()
    assert state["pos_embed"].shape == (1, 1 + 4, 192)
    assert torch.equal(state["blocks.3.attn.qkv.weight"], model.blocks[3].attn.qkv.weight)


def test_a_path_is_as_good_as_a_name(files, tmp_path):
    """With states of the run, which say where its weights came from."""
    common = {"checkpoint_dir": tmp_path, "epochs": 1, "batch_size": 20}
    excb = estimator(NAME, pretrained=files[NAME], **common).fit(IMAGES)
    again = estimator(NAME, pretrained=str(files[NAME]), resume=True, **common).fit(IMAGES)
    np.testing.assert_array_equal(again.labels_, excb.labels_)


def test_a_frozen_module_of_timm_says_how_its_images_are_prepared(files):
    """As if its name and its file had been given."""
    own = timm.create_model(HALVES, num_classes=0)
    own.load_state_dict(
        {n: w for n, w in timm.models.load_state_dict(files[HALVES]).items() if "classif" not in n}
    )
    excb = estimator(own, freeze_backbone=True).fit(IMAGES)
    expected = own_features(HALVES, files[HALVES], IMAGES)
    np.testing.assert_allclose(excb.transform(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "whole"), [("resnet18", "bilinear"), ("swin_t", "bicubic")])
def test_images_are_prepared_as_torchvision_says(tmp_path, name, whole):
    file = tmp_path / "weights.safetensors"
    save_file(models.get_model(name).state_dict(), file)
    excb = estimator(f"torchvision:{name}", pretrained=file).fit(IMAGES)
    assert excb._fitted.recipe.whole_filter == whole


def test_weights_with_another_classifier_are_those_of_torchvision(tmp_path):
    file = tmp_path / "weights.safetensors"
    state = models.resnet18(num_classes=7).state_dict()
    save_file(state, file)
    excb = estimator("torchvision:resnet18", pretrained=file).fit(IMAGES)
    assert torch.equal(excb._fitted.teacher.backbone.conv1.weight, state["conv1.weight"])
    state.pop("layer1.0.bn1.weight")
    save_file(state, file)
    with pytest.raises(PretrainedWeightsError, match=r"Missing key.*layer1\.0\.bn1\.weight"):
        estimator("torchvision:resnet18", pretrained=file).fit(IMAGES)


def test_googlenet_has_one_output_and_its_own_scale(tmp_path):
    """That of torchvision's weights, with which its ImageNet models are called."""
    model = models.googlenet(weights=None, init_weights=True, transform_input=True).eval()
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    excb = estimator("torchvision:googlenet", pretrained=file, freeze_backbone=True).fit(IMAGES)
    model.fc = nn.Identity()
    mean, std = (torch.tensor(s)[:, None, None] for s in (IMAGENET_MEAN, IMAGENET_STD))
    x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = model((x - mean) / std).numpy()
    np.testing.assert_allclose(excb.transform(IMAGES), expected, rtol=1e-4, atol=1e-4)
    excb.save(tmp_path / "fitted")
    loaded = ExCBEstimator.load(tmp_path / "fitted")
    np.testing.assert_allclose(loaded.transform(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_without_the_internet_the_way_out_is_told(monkeypatch):
    create = timm.create_model

    def offline(*args, pretrained=False, **options):
        if pretrained:
            raise FileNotFoundError("no connection to the hub\nand more lines")
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(pretrained, "_check_hub", lambda name: None)
    with pytest.raises(PretrainedWeightsError, match=r"machine, model\.safetensors of") as told:
        ExCBEstimator(K=4, backbone=NAME, pretrained=True, epochs=1).fit(IMAGES)
    assert "no connection to the hub" in str(told.value)
    assert "more lines" not in str(told.value)


@pytest.mark.parametrize("cached", [False, True])
def test_a_hub_out_of_reach_is_tried_once(monkeypatch, cached):
    tried = []

    def refused(address, timeout):
        tried.append((address, timeout))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    found = "model.safetensors" if cached else None
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: found)
    if cached:
        pretrained._check_hub(NAME)
    else:
        with pytest.raises(PretrainedWeightsError, match=r"cannot be reached.*pretrained=FILE"):
            ExCBEstimator(K=4, backbone=NAME, pretrained=True, epochs=1).fit(IMAGES)
    assert len(tried) == (not cached)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "teacher.backbone.", "my_net."])
def test_prefixes_of_names_do_not_matter(files, tmp_path, prefix, caplog):
    state = timm.models.load_state_dict(files[NAME])
    state = {f"{prefix}{name}": w for name, w in state.items() if "classifier" not in name}
    save_file(state | {"head.weight": torch.ones(3, 3)}, tmp_path / "w.safetensors")
    excb = estimator(NAME, pretrained=tmp_path / "w.safetensors", freeze_backbone=True).fit(IMAGES)
    expected = own_features(NAME, files[NAME], IMAGES)
    np.testing.assert_allclose(excb.transform(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert not caplog.records


def test_two_networks_in_a_file_are_refused(files, tmp_path):
    state = timm.models.load_state_dict(files[NAME])
    two = {f"{of}.{name}": w.clone() for of in ("student", "teacher") for name, w in state.items()}
    save_file(two, tmp_path / "w.safetensors")
    with pytest.raises(PretrainedWeightsError, match=r"under 'student\.' and 'teacher\.'"):
        estimator(NAME, pretrained=tmp_path / "w.safetensors").fit(IMAGES)


PORT = "tf_efficientnet_lite0"
LAYERS = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}


def ported(state):
    """Rename weights of timm as efficientnet_pytorch does."""
    blocks = list(dict.fromkeys(n.rsplit(".", 2)[0] for n in state if n.startswith("blocks.")))
    renamed = {}
    for name, weight in state.items():
        start, layer, rest = name.rsplit(".", 2) if name.count(".") > 1 else ("", *name.split("."))
        if start:
            short = f"{start}.conv_pwl.weight" not in state
            norm = {f"bn{i}": f"_bn{i if short else i - 1}" for i in (1, 2, 3)}
            names = LAYERS | norm | ({"conv_pw": "_project_conv"} if short else {})
            new = f"_blocks.{blocks.index(start)}.{names[layer]}.{rest}"
        else:
            other = {"bn1": "_bn0", "bn2": "_bn1", "classifier": "_fc"}
            new = f"{other.get(layer, '_' + layer)}.{rest}"
        renamed[new] = weight
    return renamed


def test_names_of_efficientnet_pytorch_are_translated(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model(PORT)
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    save_file(ported(model.state_dict()), tmp_path / "port.safetensors")
    built = build_backbone(
        PORT, n_channels=3, image_size=32, pretrained=tmp_path / "port.safetensors"
    )
    for name, weight in built.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    with pytest.raises(PretrainedWeightsError, match="Use backbone='tf_efficientnet_lite0'"):
        estimator("efficientnet_lite0", pretrained=tmp_path / "port.safetensors").fit(IMAGES)


def test_a_file_with_other_names_shows_one_found_and_one_expected(files, tmp_path, caplog):
    """Without the names of all others, in the message and in the log."""
    state = timm.models.load_state_dict(files[NAME])
    other = {f"x{name}".replace(".", "/"): weight for name, weight in state.items()}
    save_file(other, tmp_path / "w.safetensors")
    for name, expected in ((NAME, "conv_stem.weight"), ("torchvision:resnet18", "conv1.weight")):
        with pytest.raises(PretrainedWeightsError, match=f"expects '{expected}', and") as told:
            estimator(name, pretrained=tmp_path / "w.safetensors").fit(IMAGES)
        assert "the nearest name in the file is 'x" in str(told.value)
        assert len(str(told.value)) < 400 + len(str(tmp_path))
    assert not caplog.records


def test_a_file_with_other_shapes_says_one(tmp_path):
    save_file(timm.create_model("mobilenetv3_small_075").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(PretrainedWeightsError, match=r"has the shape \(.*\) in the file, and \("):
        estimator(NAME, pretrained=tmp_path / "w.safetensors").fit(IMAGES)


def test_rows_have_no_backbone_to_load():
    rows = np.random.default_rng(0).normal(size=(40, 5))
    for parameters in ({"pretrained": True}, {"freeze_backbone": True}):
        with pytest.raises(ValueError, match="which are features already"):
            ExCBEstimator(K=4, **parameters).fit(rows)
