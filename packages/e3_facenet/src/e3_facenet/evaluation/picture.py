"""Pictures of results: a strip of views with their depth, and a turntable as gif or mp4."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from e3_facenet.facenet import Portrait
from tenfold import UserError
from tenfold.runs import atomic_write_bytes

HEIGHT = 160


def depth_picture(portrait: Portrait) -> NDArray[np.uint8]:
    """Depth in grey, near is bright, open background black: [V, n, n]."""
    depth, opacity = portrait.depth.cpu().numpy(), portrait.opacity.cpu().numpy()
    seen = opacity > 0.5
    near, far = (depth[seen].min(), depth[seen].max()) if seen.any() else (0.0, 1.0)
    grey = np.where(seen, 255 - 215 * (depth - near) / max(far - near, 1e-6), 0)
    return grey.clip(0, 255).astype(np.uint8)


def normal_picture(portrait: Portrait) -> NDArray[np.uint8]:
    """Virtual normals as colours: [V, n - 2, n - 2, 3]."""
    normals = portrait.normals.permute(0, 2, 3, 1).cpu().numpy()
    return ((normals + 1) * 127.5).clip(0, 255).astype(np.uint8)


def strip(portraits: list[Portrait], height: int = HEIGHT) -> Image.Image:
    """Rows of views: pictures of each portrait, then depth and normals of the first."""
    rows = [_row(portrait.pil(), height) for portrait in portraits]
    rows.append(_row([Image.fromarray(one).convert("RGB") for one in depth_picture(portraits[0])], height))
    rows.append(_row([Image.fromarray(one) for one in normal_picture(portraits[0])], height))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _row(pictures: list[Image.Image], height: int) -> Image.Image:
    row = Image.new("RGB", (height * len(pictures), height))
    for number, picture in enumerate(pictures):
        row.paste(picture.resize((height, height), Image.Resampling.NEAREST), (height * number, 0))
    return row


def write_png(image: Image.Image, path: Path, portrait: Portrait) -> None:
    """A picture with the portrait's metadata, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "png", pnginfo=portrait.png_metadata())
    atomic_write_bytes(path, buffer.getvalue())


def write_turntable(portrait: Portrait, path: Path, rate: int = 12) -> None:
    """All views of a portrait as one moving picture, by the file's ending.

    Args:
        rate: frames a second.

    Raises:
        UserError: another ending than .gif and .mp4; no imageio for mp4 (names the extra).
    """
    note = f"AI-generated synthetic face: {portrait.face.caption}"
    if path.suffix.lower() == ".gif":
        frames, buffer = portrait.pil(), io.BytesIO()
        frames[0].save(
            buffer, "gif", save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0, comment=note
        )
        atomic_write_bytes(path, buffer.getvalue())
    elif path.suffix.lower() == ".mp4":
        atomic_write_bytes(path, _mp4(portrait, rate, note))
    else:
        raise UserError(f"ending {path.suffix!r}", path, ".gif or .mp4")


def _mp4(portrait: Portrait, rate: int, note: str) -> bytes:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError("no imageio-ffmpeg", "mp4", 'pip install "e3-facenet[video]", or a .gif') from error
    import tempfile

    frames = portrait.uint8()
    if frames.shape[1] % 2:
        raise UserError(f"{frames.shape[1]} pixels", "mp4", "an even size")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "turntable.mp4")
        writer = imageio_ffmpeg.write_frames(
            str(target), (frames.shape[2], frames.shape[1]), fps=rate, macro_block_size=2, ffmpeg_log_level="error",
            output_params=["-metadata", f"comment={note}"],
        )  # fmt: skip
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        return target.read_bytes()
