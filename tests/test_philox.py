"""Counter-based draws against NumPy's own Philox."""

import numpy as np
import pytest
from scipy import stats

from sklearn_excb.runtime.philox import permutation, philox, uniforms


@pytest.mark.parametrize("counter", [(1, 0, 0, 0), (5, 7, 2, 3), (2**63, 2**64 - 1, 9, 2**40)])
@pytest.mark.parametrize("key", [(0, 0), (2**64 - 1, 1), (12345678901234567890, 42)])
def test_equals_numpys_philox(counter, key):
    # NumPy advances the counter before it draws
    before = np.array(((counter[0] - 1) % 2**64, *counter[1:]), dtype=np.uint64)
    theirs = np.random.Philox(counter=before, key=np.array(key, dtype=np.uint64)).random_raw(4)
    np.testing.assert_array_equal(philox(counter, key), theirs)


def test_draws_do_not_depend_on_the_batch():
    whole = uniforms(3, 2, np.arange(50), np.arange(8)[:, None], 1)
    assert whole.shape == (8, 50, 4)
    part = uniforms(3, 2, np.array([17, 4]), 5, 1)
    np.testing.assert_array_equal(part, whole[5, [17, 4]])


def test_draws_are_uniform_and_differ_in_every_word():
    u = uniforms(0, 1, np.arange(5000), 0, 0)
    for word in u.T:
        assert stats.kstest(word, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.05
    for other in [
        uniforms(1, 1, np.arange(5000), 0, 0),
        uniforms(0, 2, np.arange(5000), 0, 0),
        uniforms(0, 1, np.arange(5000), 1, 0),
        uniforms(0, 1, np.arange(5000), 0, 1),
    ]:
        assert abs(np.corrcoef(u[:, 0], other[:, 0])[0, 1]) < 0.05


def test_permutation_is_a_function_of_seed_and_epoch():
    order = permutation(1, 2, 100)
    np.testing.assert_array_equal(np.sort(order), np.arange(100))
    np.testing.assert_array_equal(order, permutation(1, 2, 100))
    assert not np.array_equal(order, permutation(1, 3, 100))
    assert not np.array_equal(order, permutation(2, 2, 100))
