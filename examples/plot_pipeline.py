"""
In a Pipeline, with a search over K
===================================

The estimator is a transformer too: in a pipeline it learns embeddings without labels, and what
comes after it learns from few labels.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline

from evaluation import cluster_occupancy
from sklearn_excb import ExCBEstimator

digits = load_digits()
images, y = digits.images[:500] / 16, digits.target[:500]

# %%
# ``embedding="backbone"`` hands on the features of the backbone, which suit classifiers better than
# projections do. The search is over the number of clusters; each step of it fits a network, so
# ``epochs`` is small here, and digits are seen at 16 pixels, twice their size.

pipeline = make_pipeline(
    ExCBEstimator(embedding="backbone", epochs=3, image_size=16, random_state=0),
    LogisticRegression(max_iter=1000),
)
folds = StratifiedKFold(2, shuffle=True, random_state=0)
search = GridSearchCV(
    pipeline,
    {"excbestimator__K": [10, 30, 90]},
    scoring=make_scorer(accuracy_score),
    cv=folds,
)
search.fit(images, y)
print(f"best: {search.best_params_}, accuracy {search.best_score_:.3f}")

# %%
# Without labels a scorer has to be given, for the estimator has no ``score``: similarity to the
# nearest centroid only grows with K. A scorer is a function of the fitted estimator and images that
# were held out, here the share of clusters in effective use among them.


def effective_share(excb, held_out, y=None):
    """Clusters in effective use, of all."""
    K = excb.resolved_params_["K"]
    return cluster_occupancy(excb.predict(held_out), K).effective_clusters / K


by_use = GridSearchCV(
    ExCBEstimator(epochs=3, image_size=16, random_state=0),
    {"K": [10, 30, 90]},
    scoring=effective_share,
    cv=2,
    refit=False,
).fit(images)

# %%
# With more clusters than the few images held out can fill, use falls; the features do not mind.

figure, ax = plt.subplots(layout="constrained")
x = np.arange(3)
ax.bar(x - 0.2, search.cv_results_["mean_test_score"], 0.4, label="accuracy of the pipeline")
ax.bar(x + 0.2, by_use.cv_results_["mean_test_score"], 0.4, label="clusters in use, held out")
ax.set(xticks=x, xticklabels=[10, 30, 90], xlabel="K", ylim=(0, 1))
ax.legend(loc="lower left")
plt.show()
