"""
Cluster a folder of photos
==========================

A folder is all that is needed. Nothing in it has to be labelled or of one size, and folders in it
are searched too. Here the photos are 400 of scikit-learn's digits, written out as PNG files.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from evaluation import ContactSheetDisplay
from sklearn_excb import ExCBEstimator
from sklearn_excb.reporting import report

folder = Path(tempfile.mkdtemp(), "photos")
folder.mkdir()
for number, pixels in enumerate(load_digits().images[:400]):
    Image.fromarray((pixels * 15.9).astype(np.uint8)).save(folder / f"{number:04}.png")

# %%
# ``K="auto"`` would be 20 clusters, 19.5 images in each. Ten epochs take some seconds;
# ``print(excb.dry_run(folder))`` would tell beforehand.

excb = ExCBEstimator(K=20, epochs=10, random_state=0).fit(folder)
print("a cluster for each file:")
for name, cluster in list(zip(excb.sample_names_, excb.labels_, strict=True))[:4]:
    print(f"  {Path(name).name}  {cluster}")
print(f"sizes of the clusters, 1 is balanced: {np.round(np.sort(excb.relative_cluster_sizes_), 1)}")

# %%
# Each row is a cluster, its most typical images first.

projections = excb.transform(folder)
typical = (projections * excb.cluster_centers_[excb.labels_]).sum(axis=1)
images = [Image.open(name) for name in excb.sample_names_]
figure, ax = plt.subplots(figsize=(7, 9), layout="constrained")
ContactSheetDisplay.from_predictions(images, excb.labels_, scores=typical, n_clusters=15, ax=ax)

# %%
# The report is one HTML file with all of it: a map to point at, every cluster, what is odd. From a
# shell the same is ``sklearn-excb fit photos/ --out fitted/`` and then
# ``sklearn-excb report fitted/ photos/ -o report.html``.

summary = report(excb, folder, folder.parent / "report.html")
print(f"open {summary.path.name} in a browser")

# %%
# New files get a cluster in milliseconds, here or elsewhere after ``save`` and ``load``.

excb.save(folder.parent / "fitted")
same = ExCBEstimator.load(folder.parent / "fitted")
print(same.predict([folder / "0000.png", folder / "0001.png"]))
plt.show()
