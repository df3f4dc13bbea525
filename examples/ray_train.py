"""Fit on the workers of a Ray cluster.

Install Ray Train with ``pip install "ray[train]"``, then run this file. Ray Train sets up
torch.distributed in each worker, and ``fit`` joins the process group. With GPUs, use
``ScalingConfig(num_workers=8, use_gpu=True)``.
"""

from pathlib import Path

from ray import train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from sklearn.datasets import load_digits

from sklearn_excb import ExCBEstimator

FITTED = Path("fitted-by-ray").absolute()  # on a cluster: a folder that all machines share


def work() -> None:
    """Fit on one worker; all workers have the result, and the first one saves it."""
    images = load_digits().images / 16
    excb = ExCBEstimator(K=50, epochs=3, image_size=16, random_state=0).fit(images)
    if train.get_context().get_world_rank() == 0:
        excb.save(FITTED)


if __name__ == "__main__":
    trainer = TorchTrainer(
        work,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(FITTED.parent / "ray-results")),
    )
    trainer.fit()
    excb = ExCBEstimator.load(FITTED)
    print(f"{excb.resolved_params_['devices']} workers, {len(excb.labels_):,} images")
