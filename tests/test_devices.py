"""Other devices: on a fake one, that nothing of a step stays on the CPU; on a real one, results."""

import copy
import pickle
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules._functions import SyncBatchNorm
from torch.testing._internal.distributed.fake_pg import FakeStore

from sklearn_excb import ExCBEstimator
from sklearn_excb.data.sources import ArrayImages
from sklearn_excb.networks.sync_batch_norm import synchronized_batch_norm
from sklearn_excb.runtime import transfers
from sklearn_excb.runtime.devices import resolve_precision
from sklearn_excb.runtime.ranks import ALONE, Ranks
from sklearn_excb.settings.resolve import Facts
from sklearn_excb.training.build import build, build_balancing
from sklearn_excb.training.gradients import GradientMonitor
from sklearn_excb.training.history import EpochRecord
from sklearn_excb.training.loop import StepReport, train_step
from sklearn_excb.training.optimizer import UNSCALED, Plan, TeacherRates, build_optimizer, set_rates
from sklearn_excb.views.batches import Batch
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.view_maker import Drawn, array_views

IMAGES = (load_digits().images[:120] / 16).astype(np.float32)
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def onto_fake_cuda(module: torch.nn.Module) -> None:
    """Swap every parameter and buffer for a fake one on a CUDA device that is not there."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                fake = torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cuda")
                if isinstance(tensor, torch.nn.Parameter):
                    fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                tensors[name] = fake


@pytest.fixture
def fake_cuda(monkeypatch):
    """Tensors that hold nothing, on a device that is not there; looking at a value is an error."""
    if TORCH < (2, 10):
        pytest.skip("fake CUDA tensors of this torch ask for the driver")
    # the autograd engine, streams and fused optimisers ask for the real device
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    monkeypatch.setattr(transfers, "is_pinned_for", lambda device: False)
    for name in ("SGD", "AdamW"):
        real = getattr(torch.optim, name)
        unfused = partial(lambda real, *args, fused, **rest: real(*args, **rest), real)
        monkeypatch.setattr(torch.optim, name, unfused)
    return torch.device("cuda")


@pytest.fixture
def two_ranks():
    """Ranks that say nothing to each other."""
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    world = torch.distributed.group.WORLD
    yield Ranks(1, 2, world, world)
    torch.distributed.destroy_process_group()


def step_on(device, ranks, monkeypatch, **parameters):
    """A step of a small network there; its outcome, and all tensors that go on living."""
    parameters = {"K": 5, "batch_size": 16, "micro_batch": 5, "head_width": 8} | parameters
    facts = Facts(64, "images", (32, 32), 3)
    networks, settings, _ = build(ExCBEstimator(**parameters).get_params(), facts)
    monkeypatch.setattr(SyncBatchNorm, "apply", lambda x, *_: x + torch.empty_like(x))
    with FakeTensorMode():
        onto_fake_cuda(networks.train_mode())
        optimizer = build_optimizer(networks.student, settings)
        set_rates(optimizer, settings, 0, Plan(1, 10))
        balancing = build_balancing(settings, device)
        B = ranks.most(settings.batch_size)
        groups = [
            torch.rand(settings.n_global * B, 3, *[settings.image_size] * 2, device=device),
            torch.rand(settings.n_local * B, 3, *[settings.local_size] * 2, device=device),
        ]
        batch, rates = Batch(1, groups, B, settings.batch_size), TeacherRates(0.9, 0.04)
        for parameter in networks.student.parameters():  # as the backward pass leaves them
            parameter.grad = torch.zeros_like(parameter)
        with synchronized_batch_norm(ranks):
            outcome = train_step(networks, balancing, optimizer, batch, settings, rates, ranks)
        record, gradients = EpochRecord(5, device), GradientMonitor(networks.student, UNSCALED)
        report = StepReport(0, 1, outcome)
        record.add(report)
        assert gradients.check(report) is None  # the device is asked every so many steps
    states = [*networks.state_dict().values(), *balancing.state_dict().values()]
    sums = [value for value in record.state_dict().values() if isinstance(value, torch.Tensor)]
    return outcome, [*states, *sums, *outcome.loss, *outcome[1:]]


@pytest.mark.parametrize("balancing", ["linear", "centering", "sinkhorn"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_on_a_fake_accelerator_never_meets_the_cpu(
    fake_cuda, balancing, optimizer, monkeypatch
):
    chosen = {"balancing": balancing, "optimizer": optimizer}
    _, tensors = step_on(fake_cuda, ALONE, monkeypatch, **chosen)
    assert {tensor.device.type for tensor in tensors} == {"cuda"}


@pytest.mark.skipif(TORCH < (2, 14), reason="its fake tensors follow no collective operation")
@pytest.mark.parametrize("backbone", ["cnn", "vit_tiny_patch16_224"])
def test_nor_does_that_of_several_ranks(fake_cuda, two_ranks, backbone, monkeypatch):
    outcome, tensors = step_on(fake_cuda, two_ranks, monkeypatch, backbone=backbone)
    assert {tensor.device.type for tensor in tensors} == {"cuda"}
    assert outcome.labels.shape == (2, 16)


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("side", [40, 120])
def test_views_on_a_fake_accelerator_are_made_there(fake_cuda, n_channels, side):
    recipe = ViewRecipe(
        32, 16, 2, 3, (0.5, 0.3), 0.1, (0.5,) * n_channels, (0.2,) * n_channels, 0.5
    )
    drawn = Drawn.of(0, 1, np.arange(12), recipe.kinds(0.3), recipe)
    source = ArrayImages(np.zeros((12, 40, 40, n_channels), np.uint8))
    with FakeTensorMode(allow_non_fake_inputs=True):
        views = array_views(source, np.arange(12), drawn, [], fake_cuda)
    assert [tuple(of_kind.shape) for of_kind in views] == [
        (24, n_channels, 32, 32),
        (36, n_channels, 16, 16),
    ]
    assert {of_kind.device.type for of_kind in views} == {"cuda"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_a_fit_on_an_accelerator_predicts_the_same_on_the_cpu():
    excb = ExCBEstimator(K=6, epochs=2, batch_size=32, random_state=0).fit(IMAGES)
    assert excb.resolved_params_["device"] != "cpu"
    embedded = excb.transform(IMAGES)
    on_cpu = copy.deepcopy(excb).set_params(device="cpu")
    np.testing.assert_allclose(on_cpu.transform(IMAGES), embedded, rtol=0, atol=1e-4)


def test_precision_follows_the_device_unless_it_is_named(monkeypatch):
    cpu = torch.device("cpu")
    for native, found in ((True, "bf16"), (False, "32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        assert resolve_precision("auto", cpu) == found
        assert resolve_precision("32", cpu) == "32"
        assert resolve_precision("bf16", cpu) == "bf16"
        excb = ExCBEstimator(K=4, epochs=0, device="cpu", random_state=0).fit(IMAGES[:40])
        assert excb.resolved_params_["precision"] == found
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert resolve_precision("auto", cpu) == "32"  # as ATEN_CPU_CAPABILITY asks for
    assert resolve_precision("auto", torch.device("mps")) == "32"


def test_bfloat16_products_leave_weights_and_inference_in_float32():
    few = {"K": 5, "epochs": 2, "image_size": 16, "local_size": 12, "head_width": 64}
    fits = [
        ExCBEstimator(**few, precision=precision, device="cpu", random_state=0).fit(IMAGES)
        for precision in ("32", "bf16")
    ]
    whole, half = fits
    losses = [np.array([entry["loss"] for entry in excb.history_[1:]]) for excb in fits]
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=0.01)  # then they drift apart
    assert not np.array_equal(losses[0], losses[1])
    dtypes = {tensor.dtype for tensor in half._fitted.teacher.parameters()}
    assert dtypes == {torch.float32}
    assert half.transform(IMAGES).dtype == np.float32
    np.testing.assert_array_equal(half.predict(IMAGES), half.labels_)
    # not a switch that inference takes: the same weights say the same
    before = whole.transform(IMAGES)
    np.testing.assert_array_equal(whole.set_params(precision="bf16").transform(IMAGES), before)


@pytest.mark.parametrize("precision", ["16", "bfloat16", 32, None])
def test_precision_that_cannot_be(precision):
    with pytest.raises(ValueError, match=r"precision=.*'auto' or one of '32', 'bf16'"):
        ExCBEstimator(precision=precision).fit(IMAGES)


def test_float16_products_leave_weights_and_inference_in_float32():
    few = {"K": 4, "epochs": 1, "batch_size": 16, "n_local": 1, "random_state": 0, "device": "cpu"}
    few |= {"image_size": 16, "local_size": 12, "head_width": 64}
    whole, half = (
        ExCBEstimator(precision=precision, **few).fit(IMAGES[:32]) for precision in ("32", "fp16")
    )
    np.testing.assert_allclose(half.history_[1]["loss"], whole.history_[1]["loss"], rtol=0.01)
    assert half.history_[1]["loss"] != whole.history_[1]["loss"]
    assert {tensor.dtype for tensor in half._fitted.teacher.parameters()} == {torch.float32}
    assert half.transform(IMAGES).dtype == np.float32


def scaled_step(scaler, spoil=1.0):
    """Weights of the student before and after a step; a gradient is multiplied by ``spoil``."""
    torch.manual_seed(0)
    facts = Facts(64, "rows", (0, 0), 8)
    networks, settings, _ = build(ExCBEstimator(K=4, batch_size=16).get_params(), facts)
    optimizer = build_optimizer(networks.train_mode().student, settings)
    set_rates(optimizer, settings, 1, Plan(10, 100))
    balancing = build_balancing(settings, "cpu")
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(n * 16, 8, generator=generator) for n in (2, settings.n_local)]
    batch = Batch(1, [views[0], *views[1 : 1 + bool(settings.n_local)]], 16, 16)
    networks.student.centroids.weight.register_hook(lambda gradient: gradient * spoil)
    before = [parameter.clone() for parameter in networks.student.parameters()]
    train_step(
        networks, balancing, optimizer, batch, settings, TeacherRates(0.5, 0.04), scaler=scaler
    )
    return before, [parameter.detach() for parameter in networks.student.parameters()]


def test_a_power_of_two_on_the_loss_changes_no_bit_of_a_step():
    _, plain = scaled_step(UNSCALED)
    before, scaled = scaled_step(GradScaler("cpu", init_scale=2.0**10))
    assert all(map(torch.equal, plain, scaled))
    assert not all(map(torch.equal, before, scaled))


def test_a_step_whose_gradients_overflow_is_left_out_and_lowers_the_scale():
    scaler = GradScaler("cpu", init_scale=2.0**10)
    before, after = scaled_step(scaler, spoil=torch.inf)
    assert all(map(torch.equal, before, after))
    assert scaler.get_scale() == 2.0**9


def test_overflowing_gradients_are_a_divergence_only_where_no_lower_scale_helps():
    module = torch.nn.Linear(2, 2)
    module.weight.grad = torch.full((2, 2), torch.inf)
    outcome = SimpleNamespace(loss=SimpleNamespace(total=torch.tensor(1.0)))
    for scale, diverges in ((2.0**16, False), (2.0**-11, True)):
        gradients = GradientMonitor(module, GradScaler("cpu", init_scale=scale))
        assert (gradients.check(StepReport(0, 1, outcome)) is not None) == diverges


@pytest.mark.slow
def test_compiled_networks_take_the_same_steps_and_leave_no_trace():
    few = {"K": 5, "epochs": 1, "batch_size": 30, "precision": "32", "random_state": 0}
    few |= {"device": "cpu", "settle_passes": 0, "learning_rate": 1e-4}
    plain, compiled = (
        ExCBEstimator(compile=compile, **few).fit(IMAGES) for compile in (False, True)
    )
    assert compiled.history_[1]["loss"] == pytest.approx(plain.history_[1]["loss"], rel=1e-4)
    np.testing.assert_allclose(compiled.transform(IMAGES), plain.transform(IMAGES), atol=1e-3)
    again = pickle.loads(pickle.dumps(compiled))
    np.testing.assert_array_equal(again.transform(IMAGES), compiled.transform(IMAGES))
