"""Fit with several processes, each with its own GPU or its share of the CPU.

The code is the same with and without a launcher. Without one, ``fit`` starts the processes itself::

    python examples/several_devices.py --devices 2

A launcher starts the processes on one machine or several::

    torchrun --nproc-per-node 2 examples/several_devices.py
    sbatch examples/slurm.sh

With ``--run FOLDER``, the same command resumes an interrupted fit.
"""

import argparse
import os

from sklearn.datasets import load_digits

from evaluation import cluster_occupancy
from sklearn_excb import ExCBEstimator

parser = argparse.ArgumentParser(description="Fit with several processes.")
parser.add_argument(
    "--devices", default="auto", type=lambda text: text if text == "auto" else int(text)
)
parser.add_argument("--out", default="fitted-by-several", help="folder of the result")
parser.add_argument("--run", help="folder for checkpoints, from which the fit resumes")
arguments = parser.parse_args()

images = load_digits().images / 16
excb = ExCBEstimator(
    K=50,
    epochs=3,
    image_size=16,  # twice the size of the digits; the fit takes seconds
    random_state=0,
    devices=arguments.devices,
    checkpoint_dir=arguments.run,
).fit(images)

if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":  # all have the same result
    excb.save(arguments.out)
    empty = cluster_occupancy(excb.labels_, n_clusters=50).empty_fraction
    print(f"{excb.resolved_params_['devices']} processes, {empty:.0%} of 50 clusters are empty")
