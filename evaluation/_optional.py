"""Import of optional dependencies at the time they are needed."""

from importlib import import_module
from typing import Any


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import an optional module, or raise an error that names the pip extra with it.

    Parameters
    ----------
    module : str
        Name of the module, for example ``"umap"``.
    extra : str
        Extra of the distribution that installs the module.
    purpose : str
        Feature that needs the module; the subject of the error message.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    ImportError
        If the module cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the module {module!r}, which could not be imported. "
            f'Install it with: pip install "sklearn-excb[{extra}]"'
        ) from error


def importable(module: str) -> bool:
    """Return whether a module can be imported; False if it is installed but broken."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True
