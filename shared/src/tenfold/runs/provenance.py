"""Where a number comes from: package version and commit, libraries, machine."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tenfold.runs.record import Hardware


@dataclass(frozen=True)
class Source:
    """The commit that a package was built from, as far as it can be known.

    Attributes:
        commit: full hexadecimal id, or None.
        dirty: the files differed from that commit; None without a commit.
    """

    commit: str | None
    dirty: bool | None


def package_version(package: str) -> str:
    """The version of an importable package: its distribution's, else its `__version__`, else "unknown"."""
    try:
        return metadata.version(distribution_name(package))
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "unknown"))


def distribution_name(package: str) -> str:
    """Distribution names equal import names, with `-` for `_`."""
    return package.replace("_", "-")


def package_source(package: str) -> Source:
    """The commit of a package, from how it was installed; never from the working directory.

    In this order: the commit that pip recorded for a git URL (direct_url.json), the stamp of the build
    (`<package>/_build.json`), git in the folder of an editable install. Otherwise nothing is known.
    """
    direct_url = _direct_url(package)
    commit = direct_url.get("vcs_info", {}).get("commit_id")
    if commit:
        return Source(commit, False)
    stamp = _build_stamp(package)
    if stamp is not None:
        return stamp
    if direct_url.get("dir_info", {}).get("editable"):
        return git_source(Path(unquote(urlparse(direct_url["url"]).path)))
    return Source(None, None)


def _direct_url(package: str) -> dict[str, Any]:
    try:
        text = metadata.distribution(distribution_name(package)).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return {}
    return json.loads(text) if text else {}


def _build_stamp(package: str) -> Source | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        stamp = Path(folder, "_build.json")
        if stamp.is_file():
            values = json.loads(stamp.read_text(encoding="utf-8"))
            return Source(values["commit"], values["dirty"])
    return None


def git_source(folder: Path) -> Source:
    """The commit of the work tree around `folder`; dirty when files below `folder` differ from it."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return Source(None, None)
    return Source(commit, bool(_git(folder, "status", "--porcelain", "--", ".")))


def _git(folder: Path, *arguments: str) -> str | None:
    # Variables such as GIT_DIR (set inside git hooks) would point git at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def library_versions(package: str) -> dict[str, str]:
    """Name -> version of Tenfold, the package and every installed library that either of them names."""
    names = {"tenfold", distribution_name(package)}
    for distribution in tuple(names):
        try:
            requirements = metadata.requires(distribution) or []
        except metadata.PackageNotFoundError:
            # A source tree on the path: what is loaded is what matters.
            requirements = [name for name in ("numpy", "torch", "transformers") if name in sys.modules]
        names.update(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0] for requirement in requirements)
    versions = {}
    for name in sorted(names):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> Hardware:
    """What this process computes on; "cuda" once it has used CUDA."""
    torch = sys.modules.get("torch")
    on_cuda = torch is not None and torch.cuda.is_initialized()
    return Hardware(
        machine=platform.machine(),
        cpu=_cpu_name(),
        threads=torch.get_num_threads() if torch is not None else (os.cpu_count() or 1),
        device="cuda" if on_cuda else "cpu",
        gpu=torch.cuda.get_device_name() if torch is not None and on_cuda else None,
    )


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()
