"""The balancing operator, its affine form and the measure of sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_excb.method.balancing import ClusterSizes, affine_form, balance
from tests import reference

SIZES = {
    "uniform": lambda k, g: np.full(k, 1 / k),
    "random": lambda k, g: g.dirichlet(np.ones(k)),
    "one-hot": lambda k, g: np.eye(k)[k // 2],
    "Zipf": lambda k, g: (1 / np.arange(1, k + 1)) / (1 / np.arange(1, k + 1)).sum(),
}


def sizes_of(kind, n_clusters, seed=0):
    return torch.from_numpy(SIZES[kind](n_clusters, np.random.default_rng(seed)))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("below", ["linear", "exponential"])
@pytest.mark.parametrize("n_clusters", [2, 7])
@pytest.mark.parametrize("tolerance", [1.0, 1.5, 3.0])
def test_operator_and_affine_form_equal_the_reference(kind, below, n_clusters, tolerance):
    z = torch.rand(5, n_clusters, dtype=torch.float64) * 2 - 1
    sizes = sizes_of(kind, n_clusters)
    expected = reference.balance(z, sizes, below, tolerance)
    found = balance(z, sizes, below, tolerance)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    scale, bias = affine_form(sizes, below, tolerance=tolerance)
    torch.testing.assert_close(scale * z + bias, expected, rtol=1e-12, atol=1e-12)


@given(st.floats(-1, 1), st.floats(0, 5), st.floats(1, 10))
def test_sizes_within_the_tolerance_are_left_alone_and_others_moved_less(z, r, tolerance):
    sizes = torch.tensor([r, 10 - r], dtype=torch.float64) / 10
    sizes = torch.cat([sizes, torch.zeros(8)])
    plain, tolerant = (
        balance(torch.full((1, 10), z, dtype=torch.float64), sizes, tolerance=t)[0, 0].item()
        for t in (1.0, tolerance)
    )
    assert abs(tolerant - z) <= abs(plain - z) + 1e-12
    if 1 / tolerance <= r <= tolerance:
        assert tolerant == pytest.approx(z, abs=1e-12)


def test_tolerance_below_one_is_refused():
    with pytest.raises(ValueError, match="tolerance"):
        ClusterSizes(4, 0.9, tolerance=0.5)


@given(st.floats(-1, 1), st.floats(0, 1), st.integers(2, 70_000))
def test_operator_stays_in_range_and_moves_towards_balance(z, size, n_clusters):
    sizes = torch.full((n_clusters,), (1 - size) / (n_clusters - 1), dtype=torch.float64)
    sizes[0] = size
    balanced = balance(torch.full((1, n_clusters), z, dtype=torch.float64), sizes)[0, 0].item()
    assert -1 - 1e-12 <= balanced <= 1 + 1e-12
    if size * n_clusters <= 1:
        assert balanced >= z - 1e-12
    else:
        assert balanced <= z + 1e-12


def test_limits_of_the_operator():
    z = torch.tensor([[-0.5, 0.3, 0.9]], dtype=torch.float64)
    torch.testing.assert_close(balance(z, torch.full((3,), 1 / 3, dtype=torch.float64)), z)
    one_hot = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    for below in ("linear", "exponential"):
        balanced = balance(z, one_hot, below)[0]
        assert balanced[1:].tolist() == [1.0, 1.0]  # empty clusters get exactly 1
        assert balanced[0].item() == pytest.approx((1 - 0.5) / 3 - 1)


def test_exponential_form_is_finite_with_gradient_of_z_at_empty_clusters():
    z = torch.zeros(1, 2, requires_grad=True)
    balance(z, torch.tensor([1.0, 0.0]), "exponential").sum().backward()
    assert torch.isfinite(z.grad).all()


def test_floor_lets_similarity_order_the_empty_clusters():
    sizes = torch.tensor([1.0, 0.0, 0.0])
    z = torch.tensor([0.9, 0.1, 0.2])
    plain, floored = affine_form(sizes), affine_form(sizes, relative_floor=0.01)
    tied = plain.scale * z + plain.bias
    assert tied[1] == tied[2] == 1
    ordered = floored.scale * z + floored.bias
    assert ordered[2] > ordered[1] > ordered[0]


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"below='cubic' is not one of .*linear"):
        balance(torch.zeros(1, 2), torch.tensor([0.5, 0.5]), "cubic")


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999])
def test_sizes_follow_the_reference_and_keep_their_sum(momentum):
    n_clusters, generator = 9, torch.Generator().manual_seed(0)
    sizes = ClusterSizes(n_clusters, momentum)
    expected = torch.full((n_clusters,), 1 / n_clusters, dtype=torch.float64)
    for _ in range(30):
        labels = torch.randint(0, 5, (2, 16), generator=generator)
        sizes.update(labels)
        expected = reference.size_update(expected, labels, momentum, n_clusters)
        assert sizes.sizes.sum().item() == pytest.approx(1, abs=1e-6)
    assert sizes.sizes.dtype == torch.float32
    np.testing.assert_allclose(sizes.sizes.numpy(), np.asarray(expected), rtol=1e-5, atol=1e-7)


def test_reading_the_sizes_changes_nothing():
    sizes = ClusterSizes(4, 0.9)
    before = sizes.sizes.clone()
    sizes.affine()
    assert torch.equal(sizes.sizes, before)


def test_momentum_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"momentum=1.0 is not in \[0, 1\)"):
        ClusterSizes(4, 1.0)
