"""The first minute of a user: README's first lines, with the package as it is installed here.

Run by ``make dist``, with the wheel alone: python -I tests/first_minute.py README.md
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import timm
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from sklearn_excb.settings.recipes import recipe

README, WEIGHTS = Path(sys.argv[1]).resolve(), "weights.safetensors"


def first_lines():
    """The first block of Python in the README, with weights from a file as without a network."""
    lines = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert lines.count('from_recipe("photos", ') == 1
    return lines.replace(
        'from_recipe("photos", ', f'from_recipe("photos", pretrained="{WEIGHTS}", '
    )


def write_weights():
    """Write random weights in the place of those that the recipe downloads."""
    backbone = timm.create_model(recipe("photos")["backbone"].partition(".")[0])
    save_file(backbone.state_dict(), WEIGHTS)


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    Path("photos").mkdir()
    for number, image in enumerate(load_digits().images[:40].astype("uint8") * 15):
        Image.fromarray(image).save(f"photos/{number}.png")
    write_weights()
    exec(compile(first_lines(), str(README), "exec"))

    import evaluation
    import sklearn_excb
    import sklearn_excb.evaluation

    assert Path(sklearn_excb.__file__).parent.parent.name == "site-packages"  # not the checkout
    assert sklearn_excb.evaluation.knn_accuracy is evaluation.knn_accuracy
    os.chdir("/")
