"""A fit on the workers of a Ray cluster: ``pip install "ray[train]"``, then run this file.

Ray Train sets up torch.distributed in each worker; ``fit`` finds it there and joins. With GPUs say
``ScalingConfig(num_workers=8, use_gpu=True)``.
"""

from pathlib import Path

from ray import train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from sklearn.datasets import load_digits

from sklearn_excb import ExCBEstimator

FITTED = Path("fitted-by-ray").absolute()  # on a cluster: a folder that all machines see


def work() -> None:
    """Fit, as each worker does; all of them have the result, and the first one keeps it."""
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
