"""``sklearn_excb.evaluation`` is the package ``evaluation``, whoever else has that name."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluation
import sklearn_excb.evaluation
from tests.small_runs import DIGITS

HERE = Path(__file__).parent.parent
THEIRS = "raise RuntimeError('a script of somebody else')"
SCRIPT = """
import sys, pickle
import numpy as np
from pathlib import Path
{before}
from sklearn_excb import ExCBEstimator
from sklearn_excb.evaluation import KNNClassifier, cluster_occupancy, write_report
from sklearn_excb.reporting import report

digits = np.load("digits.npy")
excb = ExCBEstimator(K=4, epochs=1, image_size=12, n_local=0, head_width=16, random_state=0)
excb.fit(digits).save("fitted")
again = ExCBEstimator.load("fitted")
report(again, digits, "report.html")
rows, labels = again.transform(digits), again.predict(digits)
classifier = pickle.loads(pickle.dumps(KNNClassifier(n_neighbors=3).fit(rows, labels)))
assert (classifier.predict(rows) == labels).mean() > 0.9
assert cluster_occupancy(labels, n_clusters=4).n_samples == len(digits)
{after}
"""


RACE = """
import sys, threading
{before}
import sklearn_excb
sys.setswitchinterval(1e-5)
failed, barrier = [], threading.Barrier(6)

def load():
    barrier.wait()
    try:
        from sklearn_excb.evaluation import cluster_occupancy, nearest_neighbors, write_report
    except ImportError as error:
        failed.append(error)

threads = [threading.Thread(target=load) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
"""


@pytest.mark.parametrize("before", ["", "sys.modules['evaluation'] = type(sys)('evaluation')"])
def test_threads_that_import_it_at_once_get_all_of_it(before):
    subprocess.run([sys.executable, "-c", RACE.format(before=before)], cwd=HERE, check=True)


@pytest.mark.parametrize("name", evaluation.__all__)
def test_names_are_those_of_the_package(name):
    assert getattr(sklearn_excb.evaluation, name) is getattr(evaluation, name)


def test_modules_are_those_of_the_package():
    from sklearn_excb.evaluation.neighbors.knn import knn_accuracy as by_the_other_name

    from evaluation.neighbors.knn import knn_accuracy

    assert by_the_other_name is knn_accuracy


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "assert 'evaluation' not in sys.modules"),
        pytest.param(
            "sys.modules['evaluation'] = theirs = type(sys)('evaluation')",
            "assert sys.modules['evaluation'] is theirs",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["a file", "a module in memory"],
)
def test_a_module_of_that_name_is_left_alone(before, after, tmp_path):
    """A fit, a file, a report and a pickle, beside somebody else's ``evaluation.py``."""
    (tmp_path / "evaluation.py").write_text(THEIRS)
    np.save(tmp_path / "digits.npy", DIGITS)
    (tmp_path / "script.py").write_text(SCRIPT.format(before=before, after=after))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(HERE), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
