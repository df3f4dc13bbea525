"""What versions before have written still loads, and gives what it gave."""

import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest

from sklearn_excb import ExCBEstimator, __version__
from tests.fixtures.make import KINDS

FOLDER = Path(__file__).parent / "fixtures"
FILES = sorted(
    file
    for version in FOLDER.iterdir()
    if version.is_dir() and version.name[0].isdigit()
    for file in version.iterdir()
    if file.suffix != ".npz"
)


def load(file):
    if file.suffix == ".pickle":
        return pickle.loads(file.read_bytes())
    return joblib.load(file) if file.suffix == ".joblib" else ExCBEstimator.load(file)


def test_this_version_has_fixtures():
    assert (FOLDER / __version__).is_dir()


@pytest.mark.parametrize("file", FILES, ids=[f"{f.parent.name}, {f.name}" for f in FILES])
def test_what_was_written_gives_what_it_gave(file):
    excb, samples = load(file), KINDS[file.stem]
    with np.load(file.with_name(f"{file.stem}.npz")) as given:
        np.testing.assert_allclose(excb.transform(samples), given["embedding"], rtol=0, atol=1e-5)
        np.testing.assert_array_equal(excb.labels_, given["labels"])
        np.testing.assert_array_equal(excb.predict(samples), given["labels"])
    assert excb.resolved_params_["K"] == 3
    assert np.isfinite(excb.linkage_).all()
    assert load(file).partial_fit(samples).predict(samples).shape == (24,)
    assert excb.set_params(epochs=0).fit(samples).labels_.shape == (24,)
