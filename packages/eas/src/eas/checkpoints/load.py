"""Adapters at work on a loaded host, from a folder or from the hub, and back to both."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from eas.checkpoints.folder import CARD, CONFIG, HUB_ID, WEIGHTS, About, load_folder, save_folder
from eas.skipper import Skipper
from tenfold import UserError


def load(adapters: str | Path, model: nn.Module, *, revision: str | None = None) -> Skipper:
    """Attach adapters to a loaded host; `detach` on what is returned takes them off.

    Args:
        adapters: the folder that `eas train`, `eas tune`, `eas convert` or `eas.save` wrote, or a hub id.
        model: the frozen transformers host that they were tuned on.
        revision: of the repository on the hub.

    Raises:
        UserError: a broken folder, adapters of another host, or no such folder or repository.
    """
    return open_adapters(adapters, model, revision=revision)[0]


def open_adapters(adapters: str | Path, model: nn.Module, *, revision: str | None = None) -> tuple[Skipper, About]:
    """The same, in the host's dtype, with what the folder says of itself."""
    skipper, about = load_folder(_find(adapters, revision))
    skipper.attach(model)
    dtype = next(model.parameters()).dtype
    for module in skipper.modules():
        module.to(dtype=dtype)
    for parameter in skipper.projector.values():
        parameter.data = parameter.data.to(dtype)
    return skipper, about


def save(
    skipper: Skipper, folder: str | Path, *, host: str = "", data: str = "", run: str | None = None, **said: str
) -> Path:
    """Write adapters, PIAs and a tuned projector into a new folder with a model card, whole or not at all.

    Args:
        host: the frozen model, by hub id or fingerprint. data: what was trained on. run: the id of its run record.
        said: further fields of `eas.checkpoints.folder.About`, ``prompt_format`` and ``search``.

    Raises:
        UserError: the folder exists or cannot be written, or the skipper has no modules yet.
    """
    parts = skipper.modules()
    if not parts:
        raise UserError("nothing to save", "this skipper", "one that was attached to a host")
    save_folder(skipper, folder, About(width=parts[0].width, host=host, data=data, run=run, **said))
    return Path(folder)


def push_to_hub(adapters: Skipper | str | Path, repository: str, *, private: bool | None = None, **said: Any) -> Any:
    """Upload adapters to a model repository on the hub, made if it is not there; what `upload_folder` returns.

    Args:
        adapters: a skipper, or a folder of adapters. said: for a skipper, as in `save`; ``token`` and
            ``commit_message`` as in huggingface_hub.

    Raises:
        UserError: a broken folder.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=said.pop("token", None))
    options = {"commit_message": said.pop("commit_message", "Upload EAS adapters")}
    with TemporaryDirectory() as place:
        if isinstance(adapters, Skipper):
            adapters = save(adapters, Path(place, "adapters"), **said)
        load_folder(adapters)
        api.create_repo(repository, private=private, exist_ok=True)
        names = [CONFIG, WEIGHTS, CARD]
        return api.upload_folder(repo_id=repository, folder_path=str(adapters), allow_patterns=names, **options)


def _find(adapters: str | Path, revision: str | None) -> Path:
    """The folder itself, or where the hub's copy of it lies."""
    path = Path(adapters)
    if path.exists() or not HUB_ID.fullmatch(str(adapters)):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(adapters), revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError("no such folder, nor a repository that can be reached", adapters, "adapters") from error
