"""Warnings point to the line of the user's, whatever lies between it and us."""

import threading
import warnings

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_excb import ExCBEstimator
from sklearn_excb.exceptions import SkippedImageWarning

IMAGES = [*np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), dtype=np.uint8), b"no image"]


def small():
    return ExCBEstimator(K=2, epochs=0, n_local=0, head_width=8, on_error="skip", random_state=0)


def searched():
    def even(excb, X, y=None):
        return 0.0

    GridSearchCV(small(), {"K": [2]}, scoring=even, cv=[(range(21), range(5))]).fit(IMAGES)


def in_a_thread():
    thread = threading.Thread(target=lambda: small().fit(IMAGES))
    thread.start()
    thread.join()


CALLS = {
    "fit": lambda: small().fit(IMAGES),
    "fit_predict": lambda: small().fit_predict(IMAGES),
    "a pipeline": lambda: make_pipeline(small()).fit(IMAGES),
    "a search": searched,
    "a thread": in_a_thread,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_warnings_point_to_the_line_that_called(call):
    with pytest.warns(SkippedImageWarning) as told:
        call()
    assert {warning.filename for warning in told} == {__file__}


def test_code_without_a_module_is_warned_too():
    with pytest.warns(SkippedImageWarning, match="1 of 21") as told:
        exec("excb.fit(images)", {"excb": small(), "images": IMAGES})
    assert told[0].filename == "<string>"


def test_a_line_is_warned_once_by_the_filters_of_python():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            small().fit(IMAGES)
    assert len([of for of in told if of.category is SkippedImageWarning]) == 1
