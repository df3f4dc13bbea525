"""Pretrain on ImageNet by a published recipe, on real hardware.

    torchrun --nproc-per-node 8 examples/train_imagenet.py /data/imagenet/train --run runs/resnet50

or, on one machine, without torchrun: ``fit`` starts a process a GPU by itself. The folder needs no
class folders, though ImageNet has them. Killed, the same line goes on from ``--run``. Any parameter
of the recipe may be changed: ``--set epochs=100 --set batch_size=4096``.

Nobody has run this to the end yet: the published recipe took its authors 400 epochs (k-NN .716,
linear probe .766). ``--dry-run`` tells memory and time on the machine at hand.
"""

import argparse
import ast
import os
from pathlib import Path

from evaluation import cluster_occupancy, knn_accuracy
from sklearn_excb import ExCBEstimator


def chosen(words):
    """Parameters from words such as "epochs=100"; what is no Python literal is a string."""
    found = {}
    for name, _, text in (word.partition("=") for word in words):
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def classes(names):
    """Class of each file: the folder it is in."""
    return [Path(name).parent.name for name in names]


def main():
    """Fit, save, and measure on held-out images if there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, help="folder of the training images")
    parser.add_argument("--validation", type=Path, help="folder of others, in class folders")
    parser.add_argument("--recipe", default="paper-resnet50")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--run", type=Path, default=Path("run"), help="folder for states")
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
        return  # all have the same; one writes it
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
