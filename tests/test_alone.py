"""A fit depends on nothing that other code of the process sets or draws, and leaves it alone."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from torch import nn

from sklearn_excb import ExCBEstimator
from sklearn_excb.runtime import process_state
from sklearn_excb.runtime.private_generator import PrivateGenerator
from tests.small_runs import DIGITS, BreaksOffError, Drawing, breaking_off, small
from tests.tiers import others_slow

ROWS = DIGITS.reshape(len(DIGITS), -1)


class Noisy(nn.Module):
    """A backbone of the user's that draws now and then, not in its first call."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Dropout(0.2))
        self.layers(torch.zeros(2, 1, 12, 12))
        self.n_calls = 0

    def forward(self, x):
        self.n_calls += self.training
        features = self.layers(x)
        draws = self.training and self.n_calls > 5
        return features + torch.randn_like(features) if draws else features


def fits():
    """Fits that draw first weights, dropout, drop path and noise."""
    torch.manual_seed(0)
    noisy = Noisy()
    return {
        "images": lambda: small().fit(DIGITS),
        "rows": lambda: small(image_size="auto", local_size="auto").fit(ROWS),
        "bfloat16": lambda: small(precision="bf16", image_size=24, epochs=1).fit(DIGITS),
        "own backbone": lambda: small(backbone=noisy, local_size=12).fit(DIGITS),
        "partial_fit": lambda: small().partial_fit(DIGITS[:40]).partial_fit(DIGITS[40:80]),
        "dry run": lambda: small(epochs=1).dry_run(DIGITS) and small(epochs=0).fit(DIGITS),
    }


KINDS = ["images", "rows", "own backbone", "partial_fit", "bfloat16", "dry run"]


def weights(fitted):
    return {name: value.clone() for name, value in fitted._fitted.teacher.state_dict().items()}


def assert_same(one, other):
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def global_states():
    return (
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global one
        random.getstate(),
    )


@pytest.mark.parametrize("kind", others_slow(KINDS, default=5))
def test_generators_of_the_process_are_left_alone(kind):
    fit = fits()[kind]
    before = global_states()
    alone = weights(fit())
    assert global_states() == before
    torch.rand(3)
    assert_same(weights(fit()), alone)


@pytest.mark.parametrize("kind", others_slow(KINDS, default=4))
def test_fits_in_threads_are_those_alone(kind):
    fit = fits()[kind]
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(lambda: weights(fit())).result()
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            torch.manual_seed(1)
            torch.rand(5)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: weights(fit()), range(2)))
    finally:
        stop.set()
        disturbing.join()
    for one in both:
        assert_same(one, alone)


@pytest.mark.parametrize("X", [DIGITS, list(DIGITS), Drawing()], ids=["array", "list", "data set"])
def test_generators_are_set_only_where_a_data_set_may_draw(X, tmp_path, monkeypatch):
    def fit():
        return small(epochs=1, checkpoint_dir=tmp_path, checkpoint_every=1).fit(X)

    set_states, calls = process_state.set_generator_states, []
    monkeypatch.setattr(
        process_state, "set_generator_states", lambda states: (calls.append(1), set_states(states))
    )
    with breaking_off(after=2), pytest.raises(BreaksOffError):
        fit()
    fit()
    assert bool(calls) == isinstance(X, Drawing)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", [*MODES, "float64"])
@pytest.mark.parametrize("kind", others_slow(KINDS))
def test_modes_of_pytorch_do_not_matter(kind, mode, request):
    fit = fits()[kind]
    alone, labels = weights(fit()), small().fit(DIGITS).predict(DIGITS)
    if mode == "float64":
        request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
        torch.set_default_dtype(torch.float64)
        found = weights(fit())
        assert torch.get_default_dtype() == torch.float64
        np.testing.assert_array_equal(small().fit(DIGITS).predict(DIGITS), labels)
    else:
        with MODES[mode]():
            found = weights(fit())
            excb = small().fit(DIGITS)
            np.testing.assert_array_equal(excb.predict(DIGITS), labels)
            embedded = excb.transform(DIGITS)
        np.testing.assert_array_equal(excb.transform(DIGITS), embedded)
    assert_same(found, alone)


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad])
def test_transformed_functions_are_refused(transform, tmp_path):
    excb = small(epochs=0).fit(DIGITS)
    excb.save(tmp_path)
    uses = [
        lambda: small().fit(DIGITS),
        lambda: small().partial_fit(DIGITS),
        lambda: small().dry_run(DIGITS),
        lambda: excb.predict(DIGITS),
        lambda: excb.transform(DIGITS),
        lambda: excb.save(tmp_path),
        lambda: ExCBEstimator.load(tmp_path),
        lambda: excb.export_backbone(tmp_path / "backbone.safetensors"),
    ]

    def inside(x):
        for use in uses:
            with pytest.raises(RuntimeError, match=r"cannot be used inside a function"):
                use()
        return x.sum()

    transform(inside)(torch.ones(2))


def test_saved_estimators_load_in_any_mode(tmp_path, request):
    excb = small().fit(DIGITS)
    excb.save(tmp_path / "saved")
    expected, before = excb.transform(DIGITS), global_states()
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    with torch.inference_mode():
        found = ExCBEstimator.load(tmp_path / "saved").transform(DIGITS)
    np.testing.assert_array_equal(found, expected)
    assert global_states() == before


def draws():
    """Every kind of draw of PyTorch that networks make."""
    x = torch.linspace(-1, 1, 96).view(2, 3, 4, 4)
    q = x.flatten(2)
    return [
        lambda: torch.rand(3),
        lambda: torch.randn(3),
        lambda: torch.randint(9, (5,)),
        lambda: torch.randint(2, 9, (5,)),
        lambda: torch.randperm(7),
        lambda: torch.rand_like(x),
        lambda: torch.randn_like(x),
        lambda: torch.randint_like(x, 9),
        lambda: torch.randint_like(x, 2, 9),
        lambda: torch.normal(0.0, 1.0, (3,)),
        lambda: torch.bernoulli(x.abs()),
        lambda: torch.multinomial(torch.ones(5), 3),
        lambda: x.clone().bernoulli_(0.5),
        lambda: x.clone().exponential_(),
        lambda: torch.poisson(x.abs()),
        lambda: nn.functional.dropout(x),
        lambda: nn.functional.dropout2d(x),
        lambda: nn.functional.alpha_dropout(x, training=True),
        lambda: nn.functional.rrelu(x, training=True),
        lambda: nn.functional.gumbel_softmax(x),
        lambda: nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5),
        lambda: nn.MultiheadAttention(16, 2, dropout=0.5)(q, q, q)[0],
        lambda: nn.LSTM(16, 4, 2, dropout=0.5)(q)[0],
        lambda: nn.FractionalMaxPool2d(2, output_size=9)(torch.arange(8000.0).view(1, 20, 20, 20)),
        lambda: timm.layers.DropPath(0.5)(x),
        lambda: nn.init.trunc_normal_(torch.empty(9)),
        lambda: nn.init.orthogonal_(torch.empty(3, 3)),
    ]


@pytest.mark.parametrize("number", range(len(draws())))
def test_draws_are_a_function_of_the_seed_and_no_other(number):
    draw = draws()[number]
    torch.manual_seed(3)
    before, generator = torch.get_rng_state(), PrivateGenerator(5)
    with generator:
        first, second = draw(), draw()
    assert torch.equal(torch.get_rng_state(), before)
    assert generator.drew
    assert not torch.equal(first, second)
    torch.rand(2)
    generator.manual_seed(5)
    with generator:
        assert torch.equal(draw(), first)


def test_what_draws_nothing_is_not_seen_as_drawing():
    generator = PrivateGenerator(0)
    with generator:
        nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)).eval()(
            torch.zeros(1, 1, 5, 5)
        )
    assert generator.drew  # the first weights
    generator = PrivateGenerator(0)
    with generator:
        nn.functional.dropout(torch.ones(3), training=False)
    assert not generator.drew
