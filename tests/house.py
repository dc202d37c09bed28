"""The repository's files, for tests that span packages."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
# What make and the tools leave behind (see .gitignore): at the top, and anywhere.
MADE_AT_THE_TOP = {".git", ".venv", ".venv-lmms", ".venv-oldest", ".venv-newest", ".tools", "dist", "report", "runs"}
MADE_ANYWHERE = {"uv.lock", "wandb", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis"}


def made(folder: str, names: list[str]) -> set[str]:
    """Which `names` in `folder` are not part of the repository; for `shutil.copytree(ignore=...)` too."""
    outputs = {name for name in names if name.endswith((".pyc", ".egg-info"))}
    at_the_top = MADE_AT_THE_TOP if Path(folder) == ROOT else set()
    return set(names) & (MADE_ANYWHERE | at_the_top) | outputs


def repository_files() -> list[Path]:
    """Every file of the repository; the same with and without git."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(set(folders) - made(folder, folders))
        found += [Path(folder, name) for name in sorted(set(files) - made(folder, files))]
    return [path for path in found if not path.is_symlink()]


def load_bootstrap() -> ModuleType:
    """bootstrap.py of the repository as a module."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
