"""What a report compares the clusters with: k-means on their embeddings, and without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sklearn_excb.data.sources import ItemImages, Source
from sklearn_excb.exceptions import BaselineWarning
from sklearn_excb.fitting.untrained import untrained_network
from sklearn_excb.inference.devices import inference_device
from sklearn_excb.method.kmeans import spherical_kmeans, unit_rows
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.runtime.process_state import usual_modes
from sklearn_excb.views.reading import number_of_jobs

if TYPE_CHECKING:
    from sklearn_excb.estimator import ExCBEstimator


def baselines(
    estimator: ExCBEstimator, source: Source, projections: npt.NDArray[np.float32]
) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Run k-means with K clusters on the projections and on those of the untrained network.

    A baseline that fails is left out with a warning.

    Parameters
    ----------
    estimator : ExCBEstimator
        Fitted estimator.
    source : Source
        Samples of a report, after inference on them, K usable ones at least.
    projections : ndarray of shape (n_samples, D)
        Their projections; NaN for skipped images.

    Returns
    -------
    dict
        Labels and projections, by the name of the baseline.
    """
    rows = {
        "k-means on the same embeddings": lambda: projections,
        "untrained network, k-means": lambda: _untrained_projections(estimator, source),
    }
    found = {}
    for name, projections_of in rows.items():
        try:
            of = projections_of()
            found[name] = _kmeans(of, estimator), of
        except Exception as error:  # of a backbone, the memory, ...: the report matters more
            warn_caller(f"The report lacks the baseline {name!r}: {error}", BaselineWarning)
    return found


def _untrained_projections(estimator: ExCBEstimator, source: Source) -> npt.NDArray[np.float32]:
    usable = source.usable() if isinstance(source, ItemImages) and source.skips else source
    with usual_modes():
        network = untrained_network(
            estimator._fitted,
            usable,
            pretrained=estimator.resolved_params_.get("pretrained", False),
            seed=estimator.resolved_params_["random_state"],
            device=inference_device(estimator.device),
            n_jobs=number_of_jobs(estimator.n_jobs, source),
        )
    return estimator._project_and_label(source, network)[0]


def _kmeans(
    projections: npt.NDArray[np.float32], estimator: ExCBEstimator
) -> npt.NDArray[np.int64]:
    labels, kept = np.full(len(projections), -1), ~np.isnan(projections[:, 0])
    unit = unit_rows(projections[kept])
    resolved = estimator.resolved_params_
    start = spherical_kmeans(unit, resolved["K"], seed=resolved["random_state"])
    labels[kept] = _nearest(unit, start.unit)
    return labels


def _nearest(
    rows: npt.NDArray[np.float32], centroids: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    from sklearn_excb.evaluation import nearest_neighbors

    return nearest_neighbors(rows, centroids, 1, metric="dot")[1][:, 0]
