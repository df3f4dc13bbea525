"""What the page of the API lists says every parameter and result, as numpydoc reads it."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

import evaluation
import sklearn_excb

numpydoc = pytest.importorskip("numpydoc.validate", reason="run by `make docs`")
API = Path(__file__).parent.parent / "docs" / "api.rst"
# sections that would repeat others, and matters of style
LEFT_OUT = {"SA01", "EX01", "ES01", "RT02", "RT03", "PR08", "SS02", "SS03", "SS05"}


def listed():
    """Names on the page, and those of the public methods of its classes."""
    module = ""
    for line in API.read_text().splitlines():
        if found := re.match(r"\.\. currentmodule:: (\w+)", line):
            module = found[1]
        elif found := re.match(r"   ([\w.]+)$", line):
            yield from with_methods(f"{module}.{found[1]}")


def with_methods(name):
    yield name
    if not inspect.isclass(kind := loaded(name)):
        return
    for of, member in vars(kind).items():
        if not of.startswith("_") and isinstance(member, type(loaded) | classmethod | staticmethod):
            yield f"{name}.{of}"


def loaded(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return numpydoc.Validator._load_obj(name)


def complaints(name):
    """What numpydoc finds; a dataclass says its attributes in the place of parameters."""
    kind = loaded(name)
    left_out = LEFT_OUT | ({"PR01"} if dataclasses.is_dataclass(kind) else set())
    return [text for code, text in numpydoc.validate(name)["errors"] if code not in left_out]


@pytest.mark.parametrize("name", sorted(set(listed())))
def test_every_parameter_and_result_is_said(name):
    assert not complaints(name)


def test_what_is_public_is_listed():
    for module in (sklearn_excb, evaluation):
        names = {f"{module.__name__}.{name}" for name in module.__all__ if name != "__version__"}
        assert names <= set(listed())


def test_a_parameter_that_is_left_out_is_found(monkeypatch):
    def wanting(x, *, temperature):
        """Divide.

        Parameters
        ----------
        x : float
            Something.

        Returns
        -------
        float
            The rest of it.
        """
        return x / temperature

    monkeypatch.setattr(sklearn_excb, "wanting", wanting, raising=False)
    (complaint,) = complaints("sklearn_excb.wanting")
    assert "temperature" in complaint
