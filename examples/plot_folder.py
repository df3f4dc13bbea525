"""
Cluster a folder of photos
==========================

``fit`` takes the path of a folder and reads the images in it and in its subfolders. The images need
no labels and may differ in size. In this example, the photos are 400 of scikit-learn's digits,
written as PNG files.
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
# ``K="auto"`` would also be 20 clusters here, of about 20 images. Ten epochs take a few seconds.
# ``print(excb.dry_run(folder))`` estimates the time before a fit.

excb = ExCBEstimator(K=20, epochs=10, random_state=0).fit(folder)
print("the clusters of the first files:")
for name, cluster in list(zip(excb.sample_names_, excb.labels_, strict=True))[:4]:
    print(f"  {Path(name).name}  {cluster}")
print(f"sizes of the clusters, 1 is balanced: {np.round(np.sort(excb.relative_cluster_sizes_), 1)}")

# %%
# Each row shows a cluster, with its most typical images first.

projections = excb.transform(folder)
typical = (projections * excb.cluster_centers_[excb.labels_]).sum(axis=1)
images = [Image.open(name) for name in excb.sample_names_]
figure, ax = plt.subplots(figsize=(7, 9), layout="constrained")
ContactSheetDisplay.from_predictions(images, excb.labels_, scores=typical, n_clusters=15, ax=ax)

# %%
# The report is one HTML file with an interactive map, all clusters and odd images. The commands
# ``sklearn-excb fit photos/ --out fitted/`` and
# ``sklearn-excb report fitted/ photos/ -o report.html`` do the same from a shell.

summary = report(excb, folder, folder.parent / "report.html")
print(f"open {summary.path.name} in a browser")

# %%
# ``predict`` assigns new files to clusters in milliseconds, also after ``save`` and ``load``.

excb.save(folder.parent / "fitted")
same = ExCBEstimator.load(folder.parent / "fitted")
print(same.predict([folder / "0000.png", folder / "0001.png"]))
plt.show()
