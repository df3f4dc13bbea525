"""A frozen backbone: it stays, the head learns, and all else is as with a trained one."""

import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn

from evaluation import cluster_occupancy, knn_accuracy
from sklearn_excb import ExCBEstimator
from sklearn_excb.fitting import run
from sklearn_excb.fitting.resume import PreviousRun
from sklearn_excb.settings.resolve import Facts, resolve

digits = load_digits()
IMAGES = (digits.images[:600] / 16).astype(np.float32)
LARGE = IMAGES[:300].repeat(4, axis=1).repeat(4, axis=2)


def module():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
    )


def estimator(**parameters):
    common = {"K": 20, "backbone": module(), "freeze_backbone": True, "image_size": 24}
    return ExCBEstimator(**(common | {"epochs": 6, "random_state": 0} | parameters))


@pytest.fixture(scope="module")
def fitted():
    return estimator().fit(IMAGES)


def test_the_backbone_stays_and_the_head_learns(fitted):
    given = module().state_dict()
    for name, tensor in fitted._fitted.teacher.backbone.backbone.state_dict().items():
        assert torch.equal(tensor, given[name]), name
    assert cluster_occupancy(fitted.labels_, 20).empty_fraction == 0
    assert fitted.history_[-1]["loss"] < 0.6 * fitted.history_[1]["loss"]
    half = len(IMAGES) // 2
    rows = fitted.transform(IMAGES)
    y = digits.target[: len(IMAGES)]
    assert knn_accuracy(rows[:half], y[:half], rows[half:], y[half:], k=10) > 0.7


@pytest.mark.parametrize(("side", "batch"), [(24, 256), (64, 256), (96, 96), (224, 32)])
def test_large_images_go_through_the_backbone_in_small_batches(side, batch):
    parameters = estimator(image_size=side).get_params(deep=False)
    facts = Facts(600, "images", (side, side), 1)
    assert resolve(parameters, facts, has_batch_norm=True).inference_batch == batch


def test_a_dry_run_needs_the_features_of_a_few_images(monkeypatch):
    asked = []

    def counted(networks, batches, settings, sample):
        asked.append(len(sample))
        return np.random.default_rng(0).standard_normal((len(sample), 512)).astype(np.float32)

    monkeypatch.setattr("sklearn_excb.fitting.timed_steps.features_of", counted)
    assert estimator(image_size=96).dry_run(LARGE).n_samples == 300
    assert asked == [96]


def test_computed_features_are_counted(monkeypatch):
    counted = []
    monkeypatch.setattr("tqdm.std.tqdm.update", lambda self, n=1: counted.append(n))
    pooling = nn.Sequential(nn.AvgPool2d(12), nn.Flatten())
    estimator(image_size=96, epochs=0, backbone=pooling).fit(LARGE[:200])
    assert counted[:3] == [96, 96, 8]


@pytest.mark.parametrize("power", [-80, -47, 9, 80])
def test_nothing_depends_on_the_unit_of_features(power):
    def learned(unit):
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 12, bias=False))
        torch.manual_seed(0)
        nn.init.normal_(backbone[1].weight, std=0.1)
        backbone[1].weight.data.mul_(unit)
        few = {"K": 5, "epochs": 2, "batch_size": 40, "head_width": 8, "image_size": 8}
        excb = estimator(backbone=backbone, **few).fit(IMAGES[:80])
        return excb.labels_, excb.transform(IMAGES[:80]), excb.linkage_

    for found, expected in zip(learned(2.0**power), learned(1.0), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_labels_are_those_of_prediction_from_images(fitted):
    np.testing.assert_array_equal(fitted.predict(IMAGES), fitted.labels_)
    z = fitted.transform(IMAGES) @ fitted.cluster_centers_.T
    assert np.mean(z.argmax(axis=1) == fitted.labels_) == 1
    assert np.unique(fitted.predict(IMAGES, n_groups=5)).size == 5


def test_features_are_computed_once():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            Counting.calls += len(x)
            return x.flatten(1)

    n_epochs = 5
    estimator(backbone=Counting(), epochs=n_epochs).fit(IMAGES)
    padded = -(-len(IMAGES) // 32) * 32
    assert Counting.calls <= padded + 2  # and two to see what it gives


def test_the_same_seed_gives_the_same_fit_and_copies_predict_alike(fitted, tmp_path):
    again = clone(estimator()).fit(IMAGES)
    np.testing.assert_array_equal(again.labels_, fitted.labels_)
    fitted.save(tmp_path)
    for copy in (
        pickle.loads(pickle.dumps(fitted)),
        ExCBEstimator.load(tmp_path, backbone=module()),
    ):
        np.testing.assert_array_equal(copy.predict(IMAGES), fitted.labels_)


def test_a_run_is_taken_up_to_the_bit(fitted, tmp_path):
    class Stop(Exception):
        pass

    first = estimator(checkpoint_dir=tmp_path, checkpoint_every=40)
    seen = 0

    add = run.EpochRecord.add

    def stopping(self, report):
        nonlocal seen
        seen += 1
        if seen == 60:
            raise Stop
        return add(self, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.EpochRecord, "add", stopping)
        with pytest.raises(Stop):
            first.fit(IMAGES)
    resumed = estimator(checkpoint_dir=tmp_path, resume=True).fit(IMAGES)
    np.testing.assert_array_equal(resumed.labels_, fitted.labels_)
    best = ExCBEstimator.load(tmp_path / "best.safetensors", backbone=module())
    assert best.predict(IMAGES).shape == (len(IMAGES),)  # of images, not of features


def other_module():
    changed = module()
    with torch.no_grad():
        changed[0].weight += 0.1
    return changed


@pytest.mark.parametrize("warm", [False, True])
def test_other_weights_are_refused(tmp_path, warm):
    """They look alike, and what was learned is of the features of those before."""
    common = {"epochs": 1, "checkpoint_dir": tmp_path}
    estimator(**common).fit(IMAGES)
    later = common | {"epochs": 2, "warm_start": True} if warm else common
    said = "weights differ" if warm else "frozen weights changed"
    with pytest.raises(ValueError, match=said):
        estimator(backbone=other_module(), **later).fit(IMAGES)
    assert estimator(**later).fit(IMAGES).history_[-1]["epoch"] == later["epochs"]


def test_a_file_that_was_written_over_is_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    name = "mobilenetv3_small_050"
    chosen = {"backbone": name, "pretrained": file, "image_size": 32, "epochs": 1}
    for seed in range(2):
        torch.manual_seed(seed)
        save_file(timm.create_model(name).state_dict(), file)
        excb = estimator(**chosen, checkpoint_dir=tmp_path / "run")
        if seed:
            with pytest.raises(ValueError, match="frozen weights changed"):
                excb.fit(IMAGES)
        else:
            labels = excb.fit(IMAGES).labels_
            again = estimator(**chosen, checkpoint_dir=tmp_path / "run", resume=True).fit(IMAGES)
            np.testing.assert_array_equal(again.labels_, labels)


def test_a_warm_start_in_memory_keeps_the_backbone():
    excb = estimator(epochs=1, warm_start=True).fit(IMAGES)
    excb.set_params(epochs=2).fit(IMAGES)
    assert len(excb.history_) == 3
    excb.set_params(backbone=other_module(), epochs=3)
    with pytest.raises(ValueError, match="weights differ"):
        excb.fit(IMAGES)
    assert len(excb.history_) == 3


def test_a_run_whose_projector_had_hidden_layers_is_refused(fitted):
    settings = fitted._fitted.settings
    network = {"settings": settings.as_dict(), "head": {"widths": (512, 512, 256)}}
    state = {"step": 1, "about": {"network": network, "steps_per_epoch": 9}}
    with pytest.raises(ValueError, match=r"earlier version, whose projector .* had hidden layers"):
        PreviousRun(state, []).first_step(settings, len(IMAGES))


def test_the_projector_begins_with_the_distances_of_the_features():
    excb = estimator(epochs=0, embedding="backbone").fit(IMAGES)
    features = excb.transform(IMAGES).astype(np.float64)
    standardize, layer = excb._fitted.teacher.projector
    np.testing.assert_allclose(standardize.mean, features.mean(axis=0), atol=1e-5)
    assert float(standardize.scale) == pytest.approx(np.sqrt(features.var(axis=0).mean()), rel=1e-4)
    with torch.no_grad():
        given = layer(standardize(torch.from_numpy(features.astype(np.float32)))).double().numpy()
    # 512 features do not fit into 256 dimensions: distances are kept on average
    there, here = (np.linalg.norm(x - x[::-1], axis=1).mean() for x in (features, given))
    assert here * float(standardize.scale) / there == pytest.approx(1, rel=0.1)


def test_features_that_are_not_finite_are_told_with_their_image():
    class Inverse(nn.Module):
        def forward(self, x):
            return 1 / x.flatten(1).amax(dim=1, keepdim=True).expand(-1, 3)

    images = IMAGES.copy()
    images[7] = 0
    with pytest.raises(ValueError, match="infinity for 1 of 600 images, first for image 7"):
        estimator(backbone=nn.Sequential(nn.ReLU(), Inverse())).fit(images)


def test_backbone_is_exported_as_it_came(fitted, tmp_path):
    from safetensors.torch import load_file

    file = tmp_path / "backbone.safetensors"
    fitted.export_backbone(file)
    given = module().state_dict()
    assert {n: t.shape for n, t in load_file(file).items()} == {
        n: t.shape for n, t in given.items()
    }


def test_memory_and_time_are_told_with_the_features():
    excb = estimator()
    memory = excb.estimate_memory(IMAGES)
    assert memory.phases["features"]["networks"] > 0
    assert memory.phases["step"]["features"] == len(IMAGES) * 512 * 4
    rehearsal = excb.dry_run(IMAGES)
    assert set(rehearsal.seconds) >= {"features", "start", "training", "labels"}
    assert rehearsal.n_steps == 6 * rehearsal.steps_per_epoch


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"backbone": "resnet18"}, "would freeze the random weights"),
        ({"compile": True}, "does not train the backbone"),
        ({"flip": 0.5}, "makes views of features"),
        ({"local_size": 16}, "makes views of features"),
        ({"steps_per_epoch": 3}, "features of a stream are not kept"),
    ],
)
def test_what_only_training_has_is_refused(parameters, message):
    X = iter(IMAGES) if "steps_per_epoch" in parameters else IMAGES
    with pytest.raises(ValueError, match=message):
        estimator(**parameters).fit(X)


def test_a_stream_is_refused_before_and_after(fitted):
    with pytest.raises(ValueError, match="pass them as 2-D rows"):
        estimator().partial_fit(IMAGES)
    with pytest.raises(ValueError, match="pass them as 2-D rows"):
        pickle.loads(pickle.dumps(fitted)).set_params(freeze_backbone=False).partial_fit(IMAGES)


def test_a_module_says_by_which_mean_and_deviation_its_weights_were_trained():
    images = np.repeat(IMAGES[:60, :, :, None], 3, axis=3)
    torch.manual_seed(0)
    own = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    own.pretrained_cfg = {
        "mean": (0.1, 0.2, 0.3),
        "std": (1.0, 2.0, 4.0),
        "interpolation": "bicubic",
    }
    excb = estimator(K=3, backbone=own, epochs=1).fit(images)
    assert excb._fitted.recipe.mean == (0.1, 0.2, 0.3)
    assert excb._fitted.recipe.std == (1.0, 2.0, 4.0)
