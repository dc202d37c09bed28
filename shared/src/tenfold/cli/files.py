"""Where a package keeps what it ships beside its modules: claims.yaml, CITATION.cff, configs/."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tenfold.errors import UserError


def find_package_file(module: str, name: str) -> Path | None:
    """A file or folder that belongs to an importable package, or None.

    An installed wheel carries it inside the module; in the source tree (an editable install) it lies in the
    package's root, beside pyproject.toml.

    Args:
        module: import name, e.g. "fitprune". It is looked up, not imported.
        name: relative, e.g. "configs/mini.yaml".

    Raises:
        UserError: no such package.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("not an installed package", module)
    folder = Path(next(iter(spec.submodule_search_locations)))
    places = [folder]
    if (folder.parent.parent / "pyproject.toml").is_file():
        places.append(folder.parent.parent)
    return next((place / name for place in places if (place / name).exists()), None)


def package_file(module: str, name: str) -> Path:
    """Like `find_package_file`, for what must be there.

    Raises:
        UserError: no such package, or it does not have `name`.
    """
    path = find_package_file(module, name)
    if path is None:
        raise UserError("the package does not have this file", f"{module}: {name}")
    return path
