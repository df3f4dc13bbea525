"""The package ``evaluation`` by a name that no other module takes.

``import sklearn_excb.evaluation`` gives what ``import evaluation`` gives, even where another module
has that name. ``sklearn_excb`` itself imports it from here.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation import *  # noqa: F403
    from evaluation import _optional as _optional
    from evaluation import output_files as output_files
    from evaluation import projection as projection

_FILE = Path(__file__).resolve().parent.parent / "evaluation" / "__init__.py"


def _is_ours() -> bool:
    """Whether ``import evaluation`` gives the package beside this one; nothing is imported."""
    try:
        spec = find_spec("evaluation")
    except ValueError:  # a module that was made by hand
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == _FILE


def _load() -> ModuleType:
    """Load the package under the name of this module."""
    spec = spec_from_file_location(__name__, _FILE)
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


if _is_ours():
    sys.modules[__name__] = import_module("evaluation")
    # its modules too: none is loaded a second time
    for _name in [name for name in sys.modules if name.startswith("evaluation.")]:
        sys.modules[f"sklearn_excb.{_name}"] = sys.modules[_name]
else:
    _load()
