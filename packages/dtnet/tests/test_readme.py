"""What the README shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dtnet_mini import write_untrained

from tenfold.data import mini_captions, miniworld

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a mini model and a scene. Fails if a public name or an argument that the README uses changes."""
    monkeypatch.chdir(tmp_path)
    write_untrained(tmp_path / "runs" / "mini" / "model")
    miniworld.render(mini_captions.caption_scene(0, 0).scene, 56).save("scene.png")
    names: dict[str, object] = {}
    exec(compile("\n".join(blocks("python")), "README.md", "exec"), names)
    assert names["caption"].paths.spatial.shape == (2, 3)  # type: ignore[attr-defined]
    assert capsys.readouterr().out
