"""Write the embeddings of a large folder to one file, on a Ray cluster.

Install Ray Data with ``pip install "ray[data]"``, then run this file::

    python examples/ray_embed.py fitted/ photos/ embeddings.npy

Ray Data distributes chunks of images over its workers. All workers write to one file, which must be
in a folder that all machines share.
"""

import argparse

import ray
import ray.data

from sklearn_excb import ExCBEstimator
from sklearn_excb.bulk import BulkResults


class Embedder:
    """Worker that loads the estimator once."""

    def __init__(self, run: str, folder: str, out: str, chunk: int) -> None:
        self.results = BulkResults(ExCBEstimator.load(run), folder, out, chunk=chunk)

    def __call__(self, batch: dict) -> dict:
        """Embed the images of some chunks."""
        for chunk in batch["item"]:
            self.results.do(int(chunk))
        return batch


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write embeddings of a large folder by Ray.")
    parser.add_argument("run", help="folder of the fitted estimator")
    parser.add_argument("folder", help="folder of images")
    parser.add_argument("out", help="file for the array")
    parser.add_argument("--chunk", type=int, default=4096, help="images between two saves")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    of = (arguments.run, arguments.folder, arguments.out, arguments.chunk)

    results = BulkResults(ExCBEstimator.load(of[0]), *of[1:3], chunk=of[3])
    if missing := results.missing():
        ray.data.from_items(missing).map_batches(
            Embedder,
            fn_constructor_args=of,
            batch_size=1,
            concurrency=arguments.workers,  # with GPUs: num_gpus=1
        ).materialize()
    results.finish()
