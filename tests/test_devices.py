"""Other devices: on a fake one, that nothing of a step stays on the CPU; on a real one, results."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch._subclasses.fake_tensor import FakeTensorMode

from sklearn_excb import ExCBEstimator, auto
from sklearn_excb.backbones import SmallCNN
from sklearn_excb.balancing import ClusterSizes
from sklearn_excb.batches import Batch
from sklearn_excb.devices import resolve_precision
from sklearn_excb.networks import build_networks
from sklearn_excb.training import Plan, TeacherRates, build_optimizer, set_rates, train_step

IMAGES = (load_digits().images[:120] / 16).astype(np.float32)


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


def test_a_step_on_a_fake_accelerator_never_meets_the_cpu(monkeypatch):
    # the autograd engine asks for the real device: all but the backward pass is checked
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    facts = auto.Facts(64, "images", (8, 8), 1)
    settings = auto.resolve(ExCBEstimator(K=5).get_params(), facts, has_batch_norm=True)
    B, size = settings.batch_size, settings.image_size
    networks = build_networks(SmallCNN(1, 4), 128, n_clusters=5, head_width=8).fitting()
    with FakeTensorMode():
        onto_fake_cuda(networks)
        optimizer = build_optimizer(networks.student, settings)
        set_rates(optimizer, settings, 0, Plan(1, 10))
        sizes = ClusterSizes(5, 0.9, device="cuda")
        groups = [
            torch.rand(settings.n_global * B, 1, size, size, device="cuda"),
            torch.rand(settings.n_local * B, 1, 16, 16, device="cuda"),
        ]
        batch = Batch(1, groups, B, B)
        loss, labels, *_ = train_step(
            networks, sizes, optimizer, batch, settings, TeacherRates(0.9, 0.04)
        )
        for tensor in (loss.total, labels, sizes.sizes, *networks.parameters()):
            assert tensor.device.type == "cuda"


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
        assert resolve_precision("auto", cpu) == found
        assert resolve_precision("32", cpu) == "32"
        assert resolve_precision("bf16", cpu) == "bf16"
        excb = ExCBEstimator(K=4, epochs=1, device="cpu", random_state=0).fit(IMAGES[:40])
        assert excb.resolved_params_["precision"] == found
    assert resolve_precision("auto", torch.device("mps")) == "32"


def test_bfloat16_products_leave_weights_and_inference_in_float32():
    fits = [
        ExCBEstimator(K=5, epochs=3, precision=precision, device="cpu", random_state=0).fit(IMAGES)
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
