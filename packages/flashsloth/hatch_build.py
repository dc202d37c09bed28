"""Build hook: stamp a wheel or sdist with the commit it is built from, as `<package>/_build.json`.

The stamp is what an installed package knows of its commit: run records and citations read it. An
editable install gets none (it asks git itself), nor does a build outside a git work tree. The same file
serves every package:

    [tool.hatch.build.hooks.custom]
    path = "hatch_build.py"
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitStamp(BuildHookInterface):
    """Adds `{"commit": <id>, "dirty": <bool>}` beside the package's modules."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        commit = self._git("rev-parse", "HEAD")
        # A source archive unpacked inside somebody else's repository must not take that one's commit.
        tracked = self._git("ls-files", "--", "pyproject.toml") == "pyproject.toml"
        if version == "editable" or not commit or not tracked:
            return
        stamp = {"commit": commit, "dirty": bool(self._git("status", "--porcelain", "--", "."))}
        file = Path(self.directory, ".build.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(stamp), encoding="utf-8")
        source = next(path.parent for path in sorted(Path(self.root, "src").glob("*/__init__.py")))
        folder = source.relative_to(self.root) if self.target_name == "sdist" else source.name
        build_data["force_include"][str(file)] = f"{folder}/_build.json"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        Path(self.directory, ".build.json").unlink(missing_ok=True)

    def _git(self, *arguments: str) -> str | None:
        # Variables such as GIT_DIR (set inside git hooks) would point git at another repository.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "-C", self.root, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None
