"""Time and quality of recipes, compared with the defaults.

    python -m benchmarks.recipes digits
    python -m benchmarks.recipes packed_cifar10 --data DIR --most 2000 --recipes tiny small

prints, for each seed and recipe in turn, scores of held-out images (NMI, purity, and k-NN among the
training images by backbone features), the occupancy of the training images, and the processor time
in seconds. Compare times of one session only. "defaults" stands for no recipe.
"""

import argparse
import time
from pathlib import Path

from benchmarks.data_sets import load
from benchmarks.frozen import HEAD, line
from sklearn_excb import ExCBEstimator


def main() -> None:
    """Fit and print scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a data set of benchmarks.data_sets")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--most", type=int, default=5000, help="maximum number of images")
    parser.add_argument("--recipes", nargs="+", default=["tiny", "defaults"])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    data = load(arguments.name, arguments.data, most=arguments.most)
    print(HEAD, flush=True)
    for seed in range(arguments.seeds):
        for name in arguments.recipes:
            excb = ExCBEstimator() if name == "defaults" else ExCBEstimator.from_recipe(name)
            excb.set_params(random_state=seed)
            begun = time.process_time()
            excb.fit(data.train)
            seconds = time.process_time() - begun
            labels = excb.labels_, excb.predict(data.test)
            excb.set_params(embedding="backbone")
            features = excb.transform(data.train), excb.transform(data.test)
            K = excb.resolved_params_["K"]
            print(line(f"{name}, seed {seed}", data, K, labels, features, seconds), flush=True)


if __name__ == "__main__":
    main()
