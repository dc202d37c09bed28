"""What the README shows is what runs."""

from __future__ import annotations

import json
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


def test_the_speed_is_said_for_every_number_of_images():
    """Fails if the README quotes the best batch alone, or a number that the record does not hold."""
    record = json.loads((Path(__file__).parents[3] / "benchmarks" / "results" / "dtnet-bench-cpu.json").read_text())
    realised = {row["batch"]: f"{row['realised']:.1f}" for row in record["metrics"]["batches"]}
    said = f"{realised[1]}, {realised[10]} and {realised[50]} times as fast as projecting again, at 1, 10 and 50 images"
    assert said in README.replace("\n", " ")
