"""Write the embeddings of a large folder to one file, with one process or several.

The script resumes where an interrupted run stopped.

python examples/embed_folder.py fitted/ photos/ embeddings.npy
torchrun --nproc-per-node 8 examples/embed_folder.py fitted/ photos/ embeddings.npy
"""

import argparse

from sklearn_excb import ExCBEstimator
from sklearn_excb.bulk import write_results

parser = argparse.ArgumentParser(description="Write the embeddings of a large folder to one file.")
parser.add_argument("run", help="folder of the fitted estimator")
parser.add_argument("folder", help="folder of images")
parser.add_argument("out", help="file for the array")
parser.add_argument("--chunk", type=int, default=4096, help="images between two saves")
arguments = parser.parse_args()

if __name__ == "__main__":
    write_results(
        ExCBEstimator.load(arguments.run),
        arguments.folder,
        arguments.out,
        chunk=arguments.chunk,
        verbose=True,
    )
