"""What a fit takes in memory, told beforehand; and steps in parts, which save it."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import nn

import sklearn_excb.fitting.memory.budget
import sklearn_excb.runtime.devices
from sklearn_excb import ExCBEstimator
from sklearn_excb.data.sources import ArrayImages
from sklearn_excb.fitting.memory.estimate import estimate_memory
from sklearn_excb.fitting.memory.live_tensors import LiveTensors
from sklearn_excb.method.balancing import ClusterSizes
from sklearn_excb.networks.student_teacher import build_networks
from sklearn_excb.runtime.devices import available_memory
from sklearn_excb.settings.resolve import Facts, resolve
from sklearn_excb.training.build import prepare
from sklearn_excb.training.context import FitContext
from sklearn_excb.training.loop import split, train_step
from sklearn_excb.training.optimizer import Plan, TeacherRates, build_optimizer, set_rates
from sklearn_excb.views.batches import Batch

IMAGES = (load_digits().images[:120] / 16).astype(np.float32)
SMALL = {"K": 6, "epochs": 1, "batch_size": 32, "n_local": 2, "head_width": 64, "random_state": 0}
MB = 10**6


class Enough(Exception):
    """Raised where the rest of a fit does not matter."""


def small(**parameters):
    return ExCBEstimator(**(SMALL | parameters))


def photos(n=1_281_167, side=256):
    """As many images as one likes, which take no memory."""
    return np.broadcast_to(np.uint8(0), (n, side, side, 3))


def test_tensors_are_counted_while_they_live():
    counted = LiveTensors("born")
    held = torch.zeros(100)
    counted.count([held], "held")
    with counted:
        a = torch.ones(1000)
        b = a[10:] + 1  # a view is no new memory, the sum is
        assert counted.now == {"held": 400, "born": 4000 + 3960}
        del a
        c = torch.ones(10)
        assert counted.now == {"held": 400, "born": 3960 + 40}
    counted.count([c], "named")
    assert counted.now == {"held": 400, "born": 3960, "named": 40}
    assert counted.at_peak == {"held": 400, "born": 4000 + 3960}
    assert counted.peak == 8360
    del b, c, held
    assert counted.now.total() == 0


@pytest.mark.parametrize(("optimizer", "momenta"), [("sgd", 1), ("adamw", 2)])
def test_components_that_can_be_counted_by_hand(optimizer, momenta):
    networks = small(epochs=1).fit(IMAGES)._fitted.teacher
    excb = small(optimizer=optimizer)
    estimate = excb.estimate_memory(IMAGES)
    step = estimate.phases["views"]  # when optimiser and gradients are all there
    width, D, K = networks.projector[0].out_features, 256, 6
    predictor = 2 * D + D * width + width + 2 * width + width * D + D
    teacher = sum(p.numel() for p in networks.parameters())
    n_parameters = teacher + predictor
    assert step["centroids"] == 2 * K * D * 4
    assert step["gradients"] == 4 * n_parameters
    steps_of_adam = 4 * len(list(networks.parameters())) * 2 if optimizer == "adamw" else 0
    assert step["optimizer"] == pytest.approx(4 * momenta * n_parameters, abs=steps_of_adam)
    buffers = estimate.components["networks"] - 4 * (teacher + n_parameters) + step["centroids"]
    assert 0 < buffers < 0.01 * 4 * n_parameters  # statistics of BatchNorm
    size, local = excb.fit(IMAGES).resolved_params_["image_size"], 16
    assert step["views"] == 4 * 32 * (2 * size**2 + 2 * local**2)
    assert estimate.peak == sum(estimate.components.values())
    assert estimate.needed > estimate.peak


MEASURE = """
import json
import numpy as np
from sklearn_excb import ExCBEstimator

def resident(field):
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith(field)).split()[1])

def images(n, side):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)

ExCBEstimator(K=2, epochs=1, batch_size=4, device="cpu").fit(images(8, 8))
X = images(96, 64)
excb = ExCBEstimator(K=20, epochs=1, batch_size=48, n_local=6, backbone="resnet18", device="cpu")
before = resident("VmRSS")
excb.fit(X)
taken = resident("VmHWM") - before
estimate = excb.estimate_memory(X)
print(json.dumps([taken, estimate.peak, estimate.needed]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
def test_a_fit_takes_what_was_estimated():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True
    )
    taken, peak, needed = json.loads(done.stdout)
    assert 300 * MB < peak < taken < needed < 2 * peak + 300 * MB


@pytest.mark.slow
def test_more_clusters_take_their_centroids_and_nothing_else():
    few, many = (
        ExCBEstimator(K=K, batch_size=64, backbone="resnet18", image_size=64).estimate_memory(
            photos(100_000, side=64)
        )
        for K in (4096, 65_536)
    )
    grown = (65_536 - 4096) * 256 * 4
    assert few.peak_phase == many.peak_phase == "step"
    assert many.components["centroids"] - few.components["centroids"] == 2 * grown
    assert many.components["optimizer"] - few.components["optimizer"] == grown
    # three (K, D): the last sound teacher, the old gradient as the memory of the new one, one sum
    assert many.peak - few.peak < 6 * grown
    assert many.components["activations"] - few.components["activations"] < grown


@pytest.mark.slow
def test_the_published_recipe_can_be_asked_for_without_its_images():
    excb = ExCBEstimator.from_recipe("paper-resnet50", K=10_000)
    whole = excb.estimate_memory(photos(20_000))
    split_up = excb.set_params(micro_batch=32).estimate_memory(photos(20_000))
    assert whole.peak > 100e9  # 1,024 images of eight views through a ResNet-50
    assert split_up.peak < whole.peak / 10
    assert split_up.phases["views"]["views"] == whole.phases["views"]["views"]
    assert "GB at the peak, a training step: activations" in str(whole)
    with pytest.raises(NotFittedError):
        excb.predict(photos(2))


@pytest.mark.parametrize("launched", [True, False])
def test_of_several_devices_it_is_of_the_share_of_each(launched, monkeypatch):
    excb = small(batch_size=32, n_jobs=1, device="cpu")
    alone = excb.set_params(devices=1).estimate_memory(IMAGES)
    if launched:  # by torchrun
        names = {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "MASTER_PORT": 1}
        for name, value in (names | {"MASTER_ADDR": "localhost"}).items():
            monkeypatch.setenv(name, str(value))
    of_four = excb.set_params(devices="auto" if launched else 4).estimate_memory(IMAGES)
    assert of_four.micro_batch == 8
    assert of_four.phases["step"]["views"] * 4 == alone.phases["step"]["views"]
    assert of_four.phases["step"]["centroids"] == alone.phases["step"]["centroids"]


def test_an_estimate_changes_nothing():
    fitted = small().fit(IMAGES)
    state = torch.random.get_rng_state()
    learned = {name: id(value) for name, value in vars(fitted).items()}
    weights = fitted._fitted.teacher.centroids.weight.clone()
    fitted.estimate_memory(np.random.default_rng(0).random((30, 5)))  # rows, of all things
    assert learned == {name: id(value) for name, value in vars(fitted).items()}
    assert torch.equal(weights, fitted._fitted.teacher.centroids.weight)
    assert torch.equal(state, torch.random.get_rng_state())


def test_epochs_of_none_still_take_memory():
    estimate = small(epochs=0).estimate_memory(IMAGES)
    assert "step" not in estimate.phases
    assert estimate.peak > 0


def test_rows_have_an_estimate():
    assert ExCBEstimator(K=2).estimate_memory(np.random.default_rng(0).random((40, 9))).peak > MB


def test_every_thread_has_an_image_open_and_no_more(tmp_path):
    pixels = np.zeros((1000, 1500, 3), np.uint8)
    for i in range(12):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", compress_level=1)
    excb = ExCBEstimator(K=2, epochs=1, image_size=32, n_jobs=1, backbone="cnn", device="cpu")

    def making(**changed):
        return excb.set_params(**changed).estimate_memory(tmp_path).phases["views"]

    few, many, threads = making(batch_size=4), making(batch_size=12), making(n_jobs=8)
    one = 1000 * 1500 * 3 * 4  # in float32
    assert one < few["opened images"] < 5 * one
    assert few["opened images"] == many["opened images"] == threads["opened images"] / 8
    assert many["making views"] == 3 * few["making views"] < one
    assert few["making views"] >= 4 * 4 * 3 * (2 * 32**2 + 2 * 16**2)  # a view at the very least


def has(monkeypatch, available):
    monkeypatch.setattr(
        sklearn_excb.fitting.memory.budget, "available_memory", lambda device: available
    )


def test_fit_says_what_it_will_take(capsys):
    small(verbose=1).fit(IMAGES)
    assert "MB at the peak, a training step: activations" in capsys.readouterr().err
    small().fit(IMAGES)
    assert capsys.readouterr().err == ""


def test_fit_warns_when_the_device_has_less(monkeypatch):
    has(monkeypatch, 200 * MB)
    with pytest.warns(UserWarning, match=r'needs about .* cpu has 200 MB free.*"auto"') as caught:
        small(device="cpu").fit(IMAGES)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("X", "parameters"),
    [
        pytest.param(IMAGES, {"K": 6, "batch_size": 64}, id="digits"),
        pytest.param(
            [*IMAGES[:80], *photos(40, 90)[..., 0]], {"K": 6, "batch_size": 64}, id="a list"
        ),
        pytest.param(photos(200, 64), {"K": 10, "batch_size": 64}, id="photos"),
        pytest.param(
            photos(200, 64),
            {"K": 10, "backbone": "vit_tiny_patch16_224", "image_size": 64},
            id="ViT",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            photos(40, 300),
            {"K": 4, "backbone": "resnet50", "image_size": 96, "batch_size": 8},
            id="ResNet-50",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            np.zeros((5000, 2), np.float32), {"K": 300, "batch_size": 512}, id="narrow rows"
        ),
        pytest.param(
            np.zeros((900, 3000), np.float32), {"K": 30, "optimizer": "adamw"}, id="wide rows"
        ),
    ],
)
def test_what_is_not_looked_at_is_far_from_short(X, parameters, monkeypatch):
    bounds = []
    bound = sklearn_excb.fitting.memory.budget.generous_bound

    def recorded(*arguments):
        bounds.append(bound(*arguments))
        raise Enough

    monkeypatch.setattr(sklearn_excb.fitting.memory.budget, "generous_bound", recorded)
    excb = ExCBEstimator(random_state=0, **parameters)
    with pytest.raises(Enough):
        excb.fit(X)
    assert excb.estimate_memory(X).needed < bounds[0]


def test_a_fit_that_is_small_beside_the_memory_is_not_looked_at(monkeypatch):
    def looked_at(*arguments):
        raise AssertionError

    monkeypatch.setattr(sklearn_excb.fitting.memory.budget, "estimate_memory", looked_at)
    has(monkeypatch, 10**12)
    small(epochs=1).fit(IMAGES)


@pytest.mark.slow
def test_auto_splits_only_as_far_as_it_has_to(monkeypatch):
    whole = small(micro_batch="auto").fit(IMAGES)
    assert whole.resolved_params_["micro_batch"] == 32
    np.testing.assert_array_equal(whole.labels_, small().fit(IMAGES).labels_)
    needed = {m: small(micro_batch=m).estimate_memory(IMAGES).needed for m in (16, 32)}
    assert needed[16] < needed[32]
    has(monkeypatch, needed[16])
    excb = small(micro_batch="auto").fit(IMAGES)
    assert excb.resolved_params_["micro_batch"] == 16
    assert excb.estimate_memory(IMAGES).micro_batch == 16
    np.testing.assert_array_equal(excb.labels_, small(micro_batch=16).fit(IMAGES).labels_)
    has(monkeypatch, MB)
    with pytest.warns(UserWarning, match="has 1 MB free"):
        excb = small(micro_batch="auto").fit(IMAGES)
    assert excb.resolved_params_["micro_batch"] == 8


class LooksAtValues(nn.Module):
    """A backbone that fake tensors cannot follow."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 16)

    def forward(self, x):
        x = self.linear(nn.functional.adaptive_avg_pool2d(x, 8).flatten(1))
        return x * 2 if x.mean().item() > 0 else x


class Remembers(nn.Module):
    """A backbone that keeps tensors outside of itself."""

    kept = {}  # noqa: RUF012 - shared on purpose

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 16)
        self.scale = torch.ones(16)  # neither parameter nor buffer
        self.linear.bias.requires_grad_(False)

    def forward(self, x):
        x = self.linear(nn.functional.adaptive_avg_pool2d(x, 8).flatten(1)) * self.scale
        return x + self.kept.setdefault(len(x), torch.zeros(len(x), 1)).numpy()[0, 0]


def test_fit_leaves_ones_own_module_alone():
    assert small(backbone=Remembers(), epochs=1).fit(IMAGES).labels_.shape == (120,)


class PartlyFrozen(Remembers):
    """A backbone with a frozen parameter and a plain tensor."""

    def forward(self, x):
        return self.linear(nn.functional.adaptive_avg_pool2d(x, 8).flatten(1)) * self.scale


def test_frozen_parameters_and_plain_tensors_can_be_followed():
    estimate = small(backbone=PartlyFrozen()).estimate_memory(IMAGES)
    learned = estimate.phases["views"]["gradients"]
    n_learned = learned // 4
    assert estimate.phases["views"]["optimizer"] == pytest.approx(8 * n_learned, abs=200)  # AdamW
    assert small(backbone=PartlyFrozen(), micro_batch="auto", epochs=1).fit(IMAGES)


def test_a_backbone_that_cannot_be_followed_can_be_trained():
    excb = small(backbone=LooksAtValues(), epochs=1)
    assert excb.fit(IMAGES).labels_.shape == (120,)
    with pytest.raises(ValueError, match="The memory of this backbone cannot be estimated"):
        excb.estimate_memory(IMAGES)
    with pytest.raises(ValueError, match="The memory of this backbone cannot be estimated"):
        excb.set_params(micro_batch="auto").fit(IMAGES)


@pytest.mark.parametrize(("batch_size", "micro_batch"), [(5, 2), (3, 2), (7, 4)])
def test_no_part_is_a_single_image(batch_size, micro_batch):
    excb = small(K=3, batch_size=batch_size, micro_batch=micro_batch, epochs=1)
    assert np.isfinite(excb.fit(IMAGES[:21]).history_[-1]["loss"])


def test_auto_does_not_split_where_that_saves_nothing(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
    excb = ExCBEstimator(K=2, epochs=1, batch_size=64, micro_batch="auto", device="cpu")
    has(monkeypatch, 200 * MB)
    estimate = excb.estimate_memory(rows)
    assert estimate.peak_phase == "k-means"
    assert estimate.micro_batch == 64


@pytest.mark.parametrize("wrong", [1, 0, "all", 2.5])
def test_micro_batches_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="micro_batch="):
        small(micro_batch=wrong).fit(IMAGES)


def test_split_keeps_views_of_an_image_together():
    groups = [torch.arange(14).reshape(14, 1), torch.arange(21).reshape(21, 1)]  # B = 7
    parts = list(split(Batch(1, groups, 7, 7), 3))
    assert [share for _, share in parts] == [3 / 7, 2 / 7, 2 / 7]
    assert parts[1][0][0].flatten().tolist() == [3, 4, 10, 11]
    assert parts[1][0][1].flatten().tolist() == [3, 4, 10, 11, 17, 18]
    ((whole, share),) = split(Batch(1, groups, 7, 7), 7)
    assert share == 1
    assert whole[0].data_ptr() == groups[0].data_ptr()


def without_batch_norm(module):
    for name, part in module.named_children():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.Identity())
        else:
            without_batch_norm(part)


@pytest.mark.parametrize("micro_batch", [2, 3, 6])
@pytest.mark.parametrize("local_in_loss_h", [True, False])
def test_parts_of_a_step_add_up_to_it(micro_batch, local_in_loss_h):
    B, K = 7, 300
    settings = resolve(
        ExCBEstimator(K=2, batch_size=B, local_in_loss_h=local_in_loss_h).get_params(),
        Facts(B, "rows", (0, 0), 5),
        has_batch_norm=False,
    )
    results = []
    for m in (B, micro_batch):
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        networks = build_networks(backbone, 8, n_clusters=K, head_width=8)
        without_batch_norm(networks)
        networks.double().train_mode()
        optimizer = build_optimizer(networks.student, settings)
        set_rates(optimizer, settings, 5, Plan(1, 10))
        sizes = ClusterSizes(K, 0.9)
        for _ in range(3):
            groups = [torch.randn(views * B, 5, dtype=torch.float64) for views in (2, 2)]
            report = train_step(
                networks,
                sizes,
                optimizer,
                Batch(1, groups, B, B),
                replace(settings, micro_batch=m),
                TeacherRates(0.9, 0.04),
            )
        results.append([*report[0], *report[1:], sizes.sizes, *networks.parameters()])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("X", [IMAGES, IMAGES.reshape(120, 64)], ids=["images", "rows"])
def test_fits_in_parts(X):
    excb = small(micro_batch=12).fit(X)
    assert excb.resolved_params_["micro_batch"] == 12
    np.testing.assert_array_equal(excb.predict(X), excb.labels_)
    assert np.isfinite(excb.history_[-1]["loss"])
    assert small(micro_batch=500).fit(X).resolved_params_["micro_batch"] == 32


def test_the_cpu_has_memory_left():
    assert available_memory(torch.device("cpu")) > MB


@pytest.mark.parametrize(
    ("membership", "names"),
    [
        ("0::/job/step\n", ("job/memory.max", "memory.current")),
        (
            "4:memory:/job/step\n2:cpu:/\n0::/\n",
            ("memory/job/memory.limit_in_bytes", "memory.usage_in_bytes"),
        ),
    ],
)
def test_the_limit_of_a_batch_job_counts(tmp_path, monkeypatch, membership, names):
    limit = tmp_path / names[0]
    limit.parent.mkdir(parents=True)
    limit.write_text("5000000\n")
    (limit.parent / names[1]).write_text("4000000\n")
    (limit.parent / "memory.stat").write_text("anon 3000000\ninactive_file 500000\n")
    (tmp_path / "cgroup").write_text(membership)
    monkeypatch.setattr(sklearn_excb.runtime.devices, "_CGROUPS", tmp_path)
    monkeypatch.setattr(sklearn_excb.runtime.devices, "_MEMBERSHIP", tmp_path / "cgroup")
    assert available_memory(torch.device("cpu")) == 1_500_000
    limit.write_text("max\n")
    assert available_memory(torch.device("cpu")) > 100 * MB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_an_accelerator_takes_what_was_estimated():
    X = np.random.default_rng(0).integers(0, 256, (128, 64, 64, 3), dtype=np.uint8)
    excb = ExCBEstimator(K=20, epochs=1, batch_size=64, backbone="resnet18", device="cuda")
    estimate = excb.estimate_memory(X)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    excb.fit(X)
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.8 * estimate.peak < taken < estimate.needed


def test_a_stream_takes_what_a_collection_of_its_epochs_would():
    n, parameters = 200_000, small(K=3000, batch_size=64).get_params()

    def estimated(source):
        context = FitContext(parameters, 0, torch.device("cpu"))
        model, batches = prepare(source, context, n)
        return estimate_memory(model.networks, model.settings, batches)

    whole = estimated(ArrayImages(photos(n, side=8)))
    of_stream = estimated(ArrayImages(photos(64, side=8)))
    for phase in ("start", "k-means", "settling"):
        assert of_stream.phases[phase] == whole.phases[phase]
    assert of_stream.peak_phase == "k-means"
