"""Pretrain on ImageNet with a published recipe.

    torchrun --nproc-per-node 8 examples/train_imagenet.py /data/imagenet/train --run runs/resnet50

On one machine, torchrun is not needed: ``fit`` starts one process per GPU. The training does not
use the class folders of ImageNet. The same command resumes an interrupted run from the checkpoints
in ``--run``. Any parameter of the recipe can be changed, for example with
``--set epochs=100 --set batch_size=4096``.

Nobody has run this script to the end yet. The authors of the paper trained for 400 epochs (k-NN
.716, linear probe .766). ``--dry-run`` estimates the memory and the time on your machine.
"""

import argparse
import ast
import os
from pathlib import Path

from evaluation import cluster_occupancy, knn_accuracy
from sklearn_excb import ExCBEstimator


def chosen(words):
    """Parse parameters such as "epochs=100"; a value that is not a Python literal is a string."""
    found = {}
    for name, _, text in (word.partition("=") for word in words):
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def classes(names):
    """Return the parent folder of each file as its class."""
    return [Path(name).parent.name for name in names]


def main():
    """Fit, save, and compute the k-NN accuracy on held-out images if they are given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, help="folder of the training images")
    parser.add_argument(
        "--validation", type=Path, help="folder of held-out images, in class folders"
    )
    parser.add_argument("--recipe", default="paper-resnet50")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--run", type=Path, default=Path("run"), help="folder for checkpoints")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()

    excb = ExCBEstimator.from_recipe(
        arguments.recipe,
        **{
            "checkpoint_dir": arguments.run,
            "on_error": "skip",
            "random_state": 0,
            "verbose": 1,
            **chosen(arguments.set),
        },
    )
    if arguments.dry_run:
        print(excb.dry_run(arguments.train))
        return
    excb.fit(arguments.train)
    if int(os.environ.get("RANK", 0)) > 0:
        return  # all processes have the same result, and one saves it
    excb.save(arguments.run / "fitted")
    filled = cluster_occupancy(excb.labels_, excb.resolved_params_["K"])
    print(
        f"{filled.empty_fraction:.1%} of the clusters are empty, "
        f"the largest is {filled.largest_relative_size:.1f} times the mean"
    )
    if arguments.validation:
        excb.set_params(embedding="backbone")
        files = sorted(str(file) for file in arguments.validation.rglob("*") if file.is_file())
        accuracy = knn_accuracy(
            excb.transform(arguments.train),
            classes(excb.sample_names_),
            excb.transform(files),
            classes(files),
            k=20,
        )
        print(f"k-NN (k = 20) of {len(files):,} held-out images: {accuracy:.3f}")


if __name__ == "__main__":
    main()
