"""Whose model a folder holds: METER's and LaVIN's folders say it, all others are LLaVA's. No torch here."""

from __future__ import annotations

from pathlib import Path

from tenfold import UserError

HOSTS = ("llava", "meter", "lavin")


def host_of(model: str, said: str | None) -> str:
    """The host of a model: by what its folder holds, else as `said`, else LLaVA's.

    Args:
        model: a folder, or a name. said: by option or config; None: nothing.

    Raises:
        UserError: no such host, or the folder says another.
    """
    if said not in (None, *HOSTS):
        raise UserError(f"--host {said}", model, ", ".join(HOSTS))
    told = next((host for host in HOSTS if Path(model, f"{host}.json").is_file()), None)
    if told is None and said in ("meter", "lavin") and Path(model, "config.json").is_file():
        told = "llava"
    if said and told and said != told:
        raise UserError(f"--host {said}", model, f"{told}: its folder says so")
    return said or told or "llava"
