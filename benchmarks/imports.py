"""Import time of the estimator, relative to that of torch and scikit-learn, which it imports.

``python -m benchmarks.imports`` measures the processor time of alternating processes.
"""

import argparse
import os
import statistics
import subprocess
import sys

BARE = "import torch, sklearn.base"
OURS = "from sklearn_excb import ExCBEstimator"


def processor_seconds(code: str) -> float:
    """Return the processor time of a Python process that runs some code."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    of_children = (after.children_user, after.children_system)
    return sum(of_children) - before.children_user - before.children_system


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    for code in (BARE, OURS):
        processor_seconds(code)  # load files from the disk into memory
    ratios = sorted(processor_seconds(OURS) / processor_seconds(BARE) for _ in range(repeats))
    print(
        f"{OURS}: {statistics.median(ratios):.3f} times {BARE} "
        f"(from {ratios[0]:.3f} to {ratios[-1]:.3f}, {repeats} pairs)"
    )


if __name__ == "__main__":
    main()
