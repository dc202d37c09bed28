"""`generate`, `edit`, `turntable`, `mesh` and `demo`: options into settings, and what they say in the end."""

# Annotations are not deferred: typer evaluates them.

from pathlib import Path
from typing import Annotated

import typer

from e3_facenet.commands.options import Clip, Device, Dtype, Model, Output, Psi, Text, Yaws
from tenfold import UserError
from tenfold.cli import SeedOption
from tenfold.cli.output import echo
from tenfold.cli.settings import checked
from tenfold.cli.verbs import absolute_if_there, new_folder

GENERATE_EPILOG = (
    'Examples: [bold]e3-facenet generate "The woman has wavy hair." --model e3-facenet-512 --seed 2[/bold] · '
    '[bold]e3-facenet generate "a face with green skin , white hair and glasses"[/bold] (the mini model)'
)
EDIT_EPILOG = (
    'Example: [bold]e3-facenet edit "The woman has wavy hair." --to "This person has beard." --strength 0.5[/bold]. '
    "Editing changes appearance alone: depth, normals and mesh stay those of the first text."
)
TURNTABLE_EPILOG = 'Example: [bold]e3-facenet turntable "a face with blond hair" --output face.gif[/bold]'
MESH_EPILOG = 'Example: [bold]e3-facenet mesh "a face with blond hair" --output face.glb[/bold]'
OUTSIDE = "Own photographs (inversion) are out of scope in 1.0; gradients reach the style codes for those who write it."

To = Annotated[str, typer.Option("--to", metavar="TEXT", help="The second sentence.")]
Strength = Annotated[float, typer.Option(help="0 changes nothing, 1 follows the new text alone.")]
Background = Annotated[str, typer.Option(help="same, or official: drawn anew, as the official script does.")]


def generate(
    text: Text,
    model: Model = None,
    output: Output = None,
    seed: SeedOption = 0,
    yaws: Yaws = None,
    psi: Psi = None,
    clip: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Make a face from a sentence: pictures of all views, depth, normals, cameras."""
    given = {"text": text, "yaws": _angles(yaws), "psi": psi}
    _run(given | _model(model, clip, device, dtype), seed, output, "generate")


def edit(
    text: Text,
    to: To,
    strength: Strength = 0.5,
    background: Background = "same",
    model: Model = None,
    output: Output = None,
    seed: SeedOption = 0,
    yaws: Yaws = None,
    psi: Psi = None,
    clip: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Make a face and change it by a second sentence, without optimisation. Its geometry cannot change."""
    given = {"text": text, "edit": to, "strength": strength, "background": background, "yaws": _angles(yaws)}
    _run(given | {"psi": psi} | _model(model, clip, device, dtype), seed, output, "edit")


def demo(output: Output = None, seed: SeedOption = 0) -> None:
    """Make and edit a face with the mini model that ships, in seconds."""
    from e3_facenet.evaluation.generate import DEMO

    _run(DEMO.model_dump(), seed, output, "demo")


def turntable(
    text: Text,
    output: Annotated[Path, typer.Option(metavar="FILE", help="A .gif, or with e3-facenet[video] an .mp4.")],
    to: Annotated[str | None, typer.Option("--to", metavar="TEXT", help="Edit by a second sentence.")] = None,
    strength: Strength = 0.5,
    views: Annotated[int, typer.Option(min=2, max=360, help="Frames of the loop.")] = 24,
    model: Model = None,
    seed: SeedOption = 0,
    psi: Psi = None,
    clip: Clip = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """A face turning, as a gif or mp4; its cameras lie beside it."""
    _new_file(output, (".gif", ".mp4"))
    from e3_facenet.camera import turntable as cameras
    from e3_facenet.evaluation.model import open_model
    from e3_facenet.evaluation.picture import write_turntable
    from e3_facenet.evaluation.settings import FaceSettings
    from tenfold.runs import atomic_write_json

    settings = checked(FaceSettings, {"text": text, "psi": psi, **_model(model, clip, device, dtype)})
    opened = open_model(settings)
    portrait = opened.generate(settings.text, cameras(views), seed, settings.psi)
    if to is not None:
        portrait = opened.edit(portrait, to, strength)
    write_turntable(portrait, output)
    atomic_write_json(output.with_suffix(".cameras.json"), portrait.cameras_json())
    echo(f"wrote {output}")


def mesh(
    text: Text,
    output: Annotated[Path, typer.Option(metavar="FILE", help="A .ply, .obj or .glb.")],
    resolution: Annotated[int, typer.Option(min=8, max=1024, help="Grid points along an edge.")] = 128,
    level: Annotated[float | None, typer.Option(help="Density of the surface; 30, where it is reached.")] = None,
    model: Model = None,
    seed: SeedOption = 0,
    psi: Psi = None,
    clip: Clip = None,
    device: Device = None,
) -> None:
    """The head as a mesh with colours, inside what the training's cameras saw. Up is +z (.ply, .obj) or +y (.glb)."""
    from e3_facenet.mesh import FORMATS, extract_mesh

    _new_file(output, FORMATS)
    from e3_facenet.camera import poses
    from e3_facenet.evaluation.model import open_model
    from e3_facenet.evaluation.settings import FaceSettings

    settings = checked(FaceSettings, {"text": text, "psi": psi, **_model(model, clip, device, None)})
    opened = open_model(settings)
    portrait = opened.generate(settings.text, poses([0.0]), seed, settings.psi)
    found = extract_mesh(opened, portrait, resolution, level)
    found.save(output)
    if found.note:
        echo(found.note)
    echo(f"wrote {output}: {len(found.vertices):,} vertices, {len(found.faces):,} triangles")


def invert() -> None:
    """Not in 1.0: see the text."""
    raise UserError("invert is out of scope in 1.0", "IMAGE", "generate or edit; " + OUTSIDE)


def _run(given: dict[str, object], seed: int, output: Path | None, verb: str) -> None:
    from e3_facenet.evaluation.generate import run_generate
    from e3_facenet.evaluation.settings import FaceSettings

    settings = checked(FaceSettings, dict(given))
    folder = output or new_folder("e3-facenet", verb)
    made = run_generate(settings, seed, folder, verb)
    echo(f"{made.metrics['views']} views of {made.metrics['resolution']} pixels, seed {seed}")
    if settings.edit is not None:
        echo(f"edited with strength {settings.strength:g}: the geometry stays, appearance changes")
    echo(f"wrote pictures, views.png, depth.npy, normals.npy and cameras.json to {folder}")


def _model(model: str | None, clip: str | None, device: str | None, dtype: str | None) -> dict[str, object]:
    return {"model": absolute_if_there(model), "clip": absolute_if_there(clip), "device": device, "dtype": dtype}


def _angles(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{text!r}", "--yaws", "radians, by commas: -0.3,0,0.3") from error


def _new_file(path: Path, endings: tuple[str, ...]) -> None:
    if path.suffix.lower() not in endings:
        raise UserError(f"ending {path.suffix!r}", path, " or ".join(endings))
    if path.exists():
        raise UserError("already exists", path, "a file that does not exist yet")
