"""
Name clusters once, label everything
====================================

Whoever looks at one image of each cluster and says what it is has labelled the whole collection,
nearly. A cluster of two kinds costs the images of one of them; small and even clusters cost little.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from evaluation import ContactSheetDisplay
from sklearn_excb import ExCBEstimator

digits = load_digits()
images, y = digits.images / 16, digits.target  # y is what the person knows

# %%
# The person is shown the most typical image of each cluster.

K = 60
excb = ExCBEstimator(K=K, epochs=12, image_size=16, random_state=0).fit(images)
similarity = excb.set_params(embedding="similarity").transform(images)
shown = similarity.argmax(axis=0)
names = y[shown]
near_labels = names[excb.labels_]
print(f"{K} images named, {len(images)} labelled, {np.mean(near_labels == y):.1%} of them rightly")

# %%
# A classifier that learns from the near-labels mends some of what is wrong, and is better than one
# that learns from as many images drawn at random.

features = excb.set_params(embedding="backbone").transform(images)


def accuracy(rows, labels):
    """Share of all images that a classifier of these labels gets right."""
    classifier = LogisticRegression(C=0.01, max_iter=2000)
    return classifier.fit(features[rows], labels).score(features, y)


everything = np.arange(len(images))
random = np.random.default_rng(0)
drawn = [random.choice(everything, K, replace=False) for _ in range(5)]
scores = {
    "near-labels": np.mean(near_labels == y),
    "classifier of near-labels": accuracy(everything, near_labels),
    f"classifier of {K} typical images": accuracy(shown, names),
    f"classifier of {K} at random": np.mean([accuracy(rows, y[rows]) for rows in drawn]),
}
for name, score in scores.items():
    print(f"{name:32} {score:.1%}")

# %%
# All four, and a dozen of the clusters, each with its most typical images first.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
left.barh(list(scores), list(scores.values()))
left.set(xlim=(0.5, 1), xlabel="labelled rightly")
left.invert_yaxis()
typical = similarity[np.arange(len(images)), excb.labels_]
ContactSheetDisplay.from_predictions(images, excb.labels_, scores=typical, n_clusters=12, ax=right)
plt.show()
