"""What the README shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch) -> None:
    """On the mini model, decoded directly. Fails if a public name or an argument that the README uses changes."""
    from inst_diff_edit.data import scenes
    from inst_diff_edit.miniature import model as mini

    monkeypatch.chdir(tmp_path)
    scenes.edit(0, 0).picture().save("bear.jpg")
    code = "\n".join(line for line in blocks("python")[0].splitlines() if '.to("cuda")' not in line)
    opened = 'InstDiffEditPipeline.from_pretrained("stable-diffusion-v1-4", inpaint="stable-diffusion-inpainting")'
    for written, here in (
        (opened, "load()"),
        ('found = pipe("bear.jpg", "a raccoon")', 'found = direct_pipe("bear.jpg")'),
    ):
        assert code.count(written) == 1
        code = code.replace(written, here)
    pipe = mini.load()
    names = {"load": lambda: pipe, "direct_pipe": lambda picture: pipe(picture, "a lemon", final="latents")}
    exec(compile(code.replace("a raccoon", "a lemon"), "README.md", "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"bear.jpg", "raccoon.png", "mask.png"}
    assert names["direct"].size == names["mask"].size == (32, 32)


def test_the_readme_s_embeddings_in_place_of_a_text_run(tmp_path, monkeypatch) -> None:
    """On the mini model, four steps each. Fails if a public name or an argument that the README uses changes."""
    from inst_diff_edit.data import scenes
    from inst_diff_edit.miniature import model as mini

    monkeypatch.chdir(tmp_path)
    scenes.edit(0, 0).picture().save("bear.jpg")
    whole, found = mini.load(), []
    options = {"num_inference_steps": 4, "num_masks": 1, "final": "mask", "output_type": "pt"}

    class Small:
        tokenizer, encode_prompt = whole.tokenizer, whole.encode_prompt

        def __call__(self, *given, **named):
            found.append(
                whole(*given, num_inference_steps=4, num_masks=1, final="mask", output_type="pt", **named).masks
            )

    exec(compile(blocks("python")[1].replace("a raccoon", "a lemon"), "README.md", "exec"), {"pipe": Small()})
    plain = whole("bear.jpg", "a lemon", **options).masks
    assert len(found) == 2 and all((masks == plain).all() for masks in found)
