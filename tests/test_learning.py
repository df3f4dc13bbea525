"""It learns, and leaves hardly any cluster empty: the defaults on scikit-learn's digits."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from evaluation import cluster_occupancy, clustering_scores, knn_accuracy
from sklearn_excb import ExCBEstimator


@pytest.mark.slow
def test_digits_at_twice_their_size():
    digits = load_digits()
    images, y = digits.images / 16, digits.target
    train, test, y_train, y_test = train_test_split(
        images, y, test_size=0.15, stratify=y, random_state=0
    )
    # at twice their size: at the 32 pixels of "auto" it takes six times as long, to the same end
    excb = ExCBEstimator(embedding="backbone", image_size=16, random_state=1)
    untrained = clone(excb).set_params(epochs=0).fit(train)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        excb.fit(train)

    def knn(embed):
        return knn_accuracy(embed(train), y_train, embed(test), y_test, k=10)

    trained, raw = knn(excb.transform), knn(lambda x: x.reshape(len(x), -1))
    assert trained >= raw
    assert trained > knn(untrained.transform)
    occupancy = cluster_occupancy(excb.labels_, excb.resolved_params_["K"])
    assert occupancy.empty_fraction < 0.01
    assert occupancy.largest_relative_size < 5
    assert clustering_scores(y_train, excb.labels_).nmi > 0.6
    losses = [entry["loss"] for entry in excb.history_[1:]]
    assert losses[-1] < np.log(excb.resolved_params_["K"]) - 1  # far from the collapse, ln K
