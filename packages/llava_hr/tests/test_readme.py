"""What the README shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava_hr.data.mini_world import render, scene
from llava_hr.evaluation.model import mini_folder

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the mini model and a scene. Fails if a public name or an argument that the README uses changes."""
    monkeypatch.chdir(tmp_path)
    render(scene(0, 0)).save("shelf.jpg")
    code = "\n".join(blocks("python"))
    for written, here in (('"llava-hr-7b-sft-1024"', repr(str(mini_folder()))), ('device="cuda"', 'device="cpu"')):
        assert code.count(written) == 1
        code = code.replace(written, here)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["visual"].shape[:2] == (1, 36)  # type: ignore[attr-defined]
    assert capsys.readouterr().out.strip()
