"""
Label a collection cluster by cluster
=====================================

If a person labels one image of each cluster, the label can be used for the whole cluster, as a
near-label. In a cluster with two classes, the images of one class get the wrong near-label. With
small and even clusters, such errors are few.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from evaluation import ContactSheetDisplay
from sklearn_excb import ExCBEstimator

digits = load_digits()
images, y = digits.images / 16, digits.target  # y stands for the answers of the person

# %%
# The person labels the most typical image of each cluster.

K = 60
excb = ExCBEstimator(K=K, epochs=12, image_size=16, random_state=0).fit(images)
similarity = excb.set_params(embedding="similarity").transform(images)
shown = similarity.argmax(axis=0)
names = y[shown]
near_labels = names[excb.labels_]
print(
    f"{K} images labelled by hand, {len(images)} by cluster, "
    f"{np.mean(near_labels == y):.1%} of them correctly"
)

# %%
# A classifier that is trained on the near-labels corrects some of the errors. It is more accurate
# than a classifier that is trained on K random images.

features = excb.set_params(embedding="backbone").transform(images)


def accuracy(rows, labels):
    """Train a classifier on the given labels and return its accuracy on all images."""
    classifier = LogisticRegression(C=0.01, max_iter=2000)
    return classifier.fit(features[rows], labels).score(features, y)


everything = np.arange(len(images))
random = np.random.default_rng(0)
drawn = [random.choice(everything, K, replace=False) for _ in range(5)]
scores = {
    "near-labels": np.mean(near_labels == y),
    "classifier on near-labels": accuracy(everything, near_labels),
    f"classifier on {K} typical images": accuracy(shown, names),
    f"classifier on {K} random images": np.mean([accuracy(rows, y[rows]) for rows in drawn]),
}
for name, score in scores.items():
    print(f"{name:32} {score:.1%}")

# %%
# The figure shows the four accuracies and twelve clusters, with their most typical images first.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
left.barh(list(scores), list(scores.values()))
left.set(xlim=(0.5, 1), xlabel="share of correct labels")
left.invert_yaxis()
typical = similarity[np.arange(len(images)), excb.labels_]
ContactSheetDisplay.from_predictions(images, excb.labels_, scores=typical, n_clusters=12, ax=right)
plt.show()
