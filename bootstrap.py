#!/usr/bin/env python3
"""Make the project's own environment: `python3 bootstrap.py`, or `make setup`.

Needs Python 3.11+ with pip, and a package index. In this folder it makes `.tools/` (uv, the installer) and `.venv/`
(what requirements.lock names, by hash, and this repository's packages, editable); elsewhere only pip and uv keep their
caches. When the environment stands it returns at once; one that was interrupted is made anew.
`python3 bootstrap.py lock` derives requirements.lock again from the pyproject files.
"""

# Annotations that an old Python cannot evaluate stand in quotes: it must get as far as handing over to a newer one.

import ast
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TOOLS = ROOT / ".tools"
VENV = ROOT / ".venv"
VENV_LMMS = ROOT / ".venv-lmms"
# Environments of other versions than requirements.lock's, by the argument that makes them -> uv's way of resolving.
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
# Says that the dependencies are installed whole; absent while they are being installed.
WHOLE = VENV / "dependencies-are-whole"
# Says which state of the repository the environment was made from.
STAMP = VENV / "made-from.sha256"
LOCK = ROOT / "requirements.lock"
# In an active virtual environment: the Python below it. `.venv` must not be made from itself.
PYTHON = getattr(sys, "_base_executable", None) or sys.executable
OLDEST = (3, 11)
VERSION = "{}.{}".format(*sys.version_info[:2])
# What a system keeps its trusted certificates in, a company's own among them.
CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
HEARTBEAT_SECONDS = 30
REASONS = {
    r"No space left on device": "no space left on the disk (expected about 6 GB)",
    r"certificate": "the package index's certificate is not trusted (expected its CA in SSL_CERT_FILE)",
    r"dns error|error sending request|connection (refused|reset)|timed? ?out|NewConnectionError": (
        "the package index cannot be reached (expected a network, or a mirror in pip's settings)"
    ),
}


class SetupError(Exception):
    """What a person can put right, in one line."""


def setup() -> None:
    """Make or refresh `.venv`; do nothing when it stands.

    Raises:
        SetupError: no pip, no reachable index, a full disk, a package that cannot be built, ...
    """
    if stands():
        return
    with exclusive() as held:
        if stands():  # another run made it meanwhile
            return
        uv = ensure_uv(held)
        environment = uv_environment(uv)
        python = VENV / "bin" / "python"
        if not (_is_environment() and _read(WHOLE) == _made_for()):
            say(f"making .venv with Python {VERSION}")
            if (VENV / "bin" / "python").exists() and not _is_environment():
                shutil.rmtree(VENV)  # what is left of one; uv clears only what is whole
            command = [uv, "venv", "--quiet", "--clear", "--no-project", "--python", PYTHON, VENV]
            call(command, "making .venv", environment, held)
        for mark in (STAMP, WHOLE):
            mark.unlink(missing_ok=True)
        say("installing requirements.lock (the first time this downloads torch: several GB)")
        command = [uv, "pip", "sync", "--python", python, "--require-hashes", LOCK]
        command += ["--build-constraints", LOCK, "--require-build-hashes"]
        if sys.dont_write_bytecode:
            # Otherwise every process would compile torch and transformers for itself.
            command.append("--compile-bytecode")
        # Not from this folder: there uv hides what is newer than pyproject.toml's date, and so everything of an
        # index that does not say when its files appeared. The hashes pin enough.
        call(command, "installing requirements.lock", environment, held, cwd=Path("/"))
        WHOLE.write_text(_made_for(), encoding="utf-8")
        folders = [file.parent for file in pyprojects() if file.parent != ROOT]
        say(f"installing {', '.join(folder.relative_to(ROOT).as_posix() for folder in folders)} (editable)")
        # Without isolation: the build backend, too, is the one that requirements.lock names.
        command = [uv, "pip", "install", "--python", python, "--no-deps", "--no-build-isolation"]
        command += [argument for folder in folders for argument in ("--editable", folder)]
        call(command, "installing the packages of this repository", environment, held, cwd=Path("/"))
        STAMP.write_text(_digest(), encoding="utf-8")
        say(".venv is ready")


def setup_lmms() -> None:
    """Make or refresh `.venv-lmms`: lmms-eval, whose pins are its own, with the packages that plug into it, and pytest.

    Raises:
        SetupError: as `setup`.
    """
    with exclusive() as held:
        uv = ensure_uv(held)
    environment = uv_environment(uv)
    python = VENV_LMMS / "bin" / "python"
    if not python.exists():
        call([uv, "venv", "--quiet", "--no-project", "--python", PYTHON, VENV_LMMS], "making .venv-lmms", environment)
    say("installing lmms-eval into .venv-lmms (the first time this downloads torch: several GB)")
    command = [uv, "pip", "install", "--quiet", "--python", python, "--requirement", "requirements-lmms.txt"]
    command += ["--editable", "shared", "--editable", "packages/fitprune[eval]", "--editable", "packages/llava_hr"]
    call(command, "installing lmms-eval", environment, cwd=ROOT)


def setup_versions(name: str) -> None:
    """Make or refresh `.venv-oldest` or `.venv-newest`: all packages with all extras and the dev group, of the lowest
    versions that the pyproject files state, or of the newest that the index has.

    Raises:
        SetupError: as `setup`.
    """
    import tomllib  # here: an old Python, which lacks it, must get as far as handing over

    with exclusive() as held:
        uv = ensure_uv(held)
    environment, venv = uv_environment(uv), ROOT / f".venv-{name}"
    python = venv / "bin" / "python"
    if not python.exists():
        call([uv, "venv", "--quiet", "--no-project", "--python", PYTHON, venv], f"making {venv.name}", environment)
    say(f"installing the {name} versions into {venv.name} (the first time this downloads torch: several GB)")
    command = [uv, "pip", "install", "--python", python, "--upgrade", "--resolution", RESOLUTIONS[name]]
    command += ["--group", f"{ROOT / 'pyproject.toml'}:dev"]
    for folder in (file.parent for file in pyprojects() if file.parent != ROOT):
        extras = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        named = ",".join(extras.get("optional-dependencies", {}))
        command += ["--editable", f"{folder}[{named}]" if named else str(folder)]
    # Not from this folder: there uv hides what is newer than pyproject.toml's date.
    call(command, f"installing the {name} versions", environment, cwd=Path("/"))


def derive_lock(folder: Path = ROOT) -> str:
    """The text of requirements.lock, resolved afresh from the pyproject files below `folder`.

    Every package with all extras and the dev group, exact versions with hashes; it names no index. The same for
    everybody at any time: `exclude-newer` in the root's pyproject.toml hides what was released later.

    Raises:
        SetupError: the pyproject files contradict each other, or no reachable index.
    """
    with exclusive() as held:
        uv = ensure_uv(held)
    environment = uv_environment(uv)
    # Refreshed: an index that was looked up some days ago may lack what had been released by then.
    command = [uv, "lock", "--upgrade", "--refresh", "--python", PYTHON]
    call(command, "resolving the dependencies", environment, cwd=folder)
    command = [uv, "export", "--quiet", "--frozen", "--all-packages", "--all-extras", "--no-emit-local"]
    command += ["--no-header", "--no-annotate", "--python", PYTHON]
    return call(command, "exporting the dependencies", environment, cwd=folder, capture=True)


def ensure_uv(held: int) -> Path:
    """The project's own uv, of the version and hashes in requirements.lock; pip installs it when it is missing."""
    pinned = re.search(r"^uv==(\S+)(?: \\\n    --hash=\S+)+$", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    if pinned is None:
        raise SetupError("no line for uv: requirements.lock (expected uv==<version> with hashes)")
    version = pinned.group(1)
    folder = TOOLS / f"uv-{version}"
    if not folder.is_dir():
        say(f"installing uv {version} into {folder.relative_to(ROOT)}")
        if subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
            raise SetupError(f"pip is missing: {PYTHON} -m pip (expected Python with pip; try -m ensurepip)")
        fresh = TOOLS / "uv-new"
        if fresh.exists():
            shutil.rmtree(fresh)
        pin = TOOLS / "uv.txt"
        pin.write_text(pinned.group(0) + "\n", encoding="utf-8")
        # The user's settings of pip stay in force (proxy, mirror), but for those that contradict --target.
        environment = {k: v for k, v in os.environ.items() if k not in ("PIP_USER", "PIP_PREFIX", "PIP_ROOT")}
        environment["PIP_REQUIRE_VIRTUALENV"] = "0"
        command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--no-user", "--no-deps", "--require-hashes", "--target", fresh, "--requirement", pin]
        call(command, f"installing uv {version} with pip", environment, held, capture=True)
        fresh.rename(folder)
    return folder / "bin" / "uv"


def uv_environment(uv: Path) -> "dict[str, str]":
    """What uv runs in: the user's settings, of pip too where uv has none; this Python; a cache that can be written."""
    drop = {"VIRTUAL_ENV", "CONDA_PREFIX", "UV_SYSTEM_PYTHON", "UV_PYTHON", "PYTHONPATH", "PYTHONHOME"}
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    environment["UV_PYTHON_DOWNLOADS"] = "never"
    environment["COLUMNS"] = "1000"  # off a terminal uv breaks its lines, in the middle of a reason
    pip = _pip_settings()
    if "index-url" in pip and "UV_INDEX_URL" not in environment:
        environment.setdefault("UV_DEFAULT_INDEX", pip["index-url"])
    if Path(pip.get("cert", "")).is_file():
        environment.setdefault("SSL_CERT_FILE", pip["cert"])
    if any(Path(file).is_file() for file in CERTIFICATES):
        environment.setdefault("UV_SYSTEM_CERTS", "1")
    found = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, env=environment, check=False)
    cache = Path(found.stdout.strip()) if found.returncode == 0 else TOOLS / "cache"
    there = next(path for path in (cache, *cache.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        cache = TOOLS / "cache"  # no home, or one that belongs to somebody else
    environment["UV_CACHE_DIR"] = str(cache)
    return environment


def _pip_settings() -> "dict[str, str]":
    """pip's settings from its files and the environment; empty without pip."""
    listed = subprocess.run([PYTHON, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    # The specific later: [global], then [install], then the environment's.
    ranks = {"global": 0, "install": 1, ":env:": 2}
    found = re.findall(r"^(global|install|:env:)\.([\w-]+)=('.*'|\".*\")$", listed.stdout, re.MULTILINE)
    return {key: ast.literal_eval(value) for _, key, value in sorted(found, key=lambda line: ranks[line[0]])}


def pyprojects() -> "list[Path]":
    """The pyproject files of the workspace, the root's first."""
    return [
        ROOT / "pyproject.toml",
        ROOT / "shared" / "pyproject.toml",
        *sorted(ROOT.glob("packages/*/pyproject.toml")),
    ]


def stands() -> bool:
    """Whether `.venv` is complete and made from the files as they are now."""
    return _is_environment() and _read(STAMP) == _digest()


def _is_environment() -> bool:
    # Without pyvenv.cfg its Python runs all the same, as the one below it, and finds none of the packages.
    return (VENV / "bin" / "python").exists() and (VENV / "pyvenv.cfg").is_file()


def _digest() -> str:
    digest = hashlib.sha256(_made_for().encode())
    for file in (Path(__file__), LOCK, *pyprojects()):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _made_for() -> str:
    # The folder belongs to it: scripts and editable installs hold absolute paths.
    return f"Python {VERSION} in {ROOT}"


def _read(mark: Path) -> "str | None":
    return mark.read_text(encoding="utf-8") if mark.is_file() else None


@contextlib.contextmanager
def exclusive() -> "Iterator[int]":
    """Hold this folder's lock; yields its file descriptor.

    Child processes get it too: an installer that outlives a killed run keeps the next one waiting.
    """
    import fcntl

    TOOLS.mkdir(exist_ok=True)
    with open(TOOLS / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another setup in this folder")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def call(
    command: "list[str | Path]",
    what: str,
    environment: "dict[str, str]",
    held: "int | None" = None,
    cwd: Path = ROOT,
    capture: bool = False,
) -> str:
    """Run a command; its standard output, where that is captured.

    On a terminal it shows its own progress; elsewhere it is silent, but for a line now and then, unless it fails.

    Raises:
        SetupError: it failed; with the reason when that can be told from its words.
    """
    show = sys.stderr.isatty() and not capture
    pipe = None if show else subprocess.PIPE
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",
        pass_fds=() if held is None else (held,),
    ) as process:
        beats = 0
        while True:
            try:
                output, errors = process.communicate(timeout=None if show else HEARTBEAT_SECONDS)
                break
            except subprocess.TimeoutExpired:
                beats += 1
                say(f"still {what} ({beats * HEARTBEAT_SECONDS} s)")
            except BaseException:
                process.kill()
                raise
    if process.returncode:
        raise SetupError(f"{what} failed: {'see above' if show else _reason(errors)}")
    return output or ""


def _reason(words: str) -> str:
    for sign, reason in REASONS.items():
        if re.search(sign, words, re.IGNORECASE):
            return reason
    lines = [line.strip(" ×╰─▶│├·") for line in words.splitlines() if line.strip()]
    # A failed build says why in the last line of its traceback, such as "FileNotFoundError: ...".
    errors = [line for line in lines if re.match(r"(error|cause|caused by|\w+Error)\b", line, re.IGNORECASE)]
    errors = errors or lines[-1:] or ["it gave no reason"]
    return "; ".join(dict.fromkeys((errors[0], errors[-1])))


def say(line: str) -> None:
    print(f"setup: {line}", flush=True)


def use_a_newer_python() -> None:
    """Go on with a Python that is new enough, when this one is not and there is one.

    Raises:
        SetupError: there is none.
    """
    for name in ("python3.11", "python3.12", "python3.13", "python3.14"):
        other = shutil.which(name)
        if other and subprocess.call([other, "-c", "pass"], stderr=subprocess.DEVNULL) == 0:
            say(f"{sys.executable} is Python {VERSION}: using {other}")
            os.execv(other, [other, *sys.argv])
    raise SetupError(f"Python {VERSION} is too old: {sys.executable} (expected 3.11 or newer: make PYTHON=...)")


def main(arguments: "list[str]") -> int:
    """Set up, or derive the lock; 0, or 2 after one line that says what is wrong."""
    try:
        if os.name != "posix":
            raise SetupError(f"not for this system: {sys.platform} (expected Linux or macOS)")
        if sys.version_info < OLDEST:
            use_a_newer_python()
        if arguments == ["lock"]:
            fresh = LOCK.with_suffix(".new")
            fresh.write_text(derive_lock(), encoding="utf-8")
            fresh.replace(LOCK)
        elif arguments == ["lmms"]:
            setup_lmms()
        elif len(arguments) == 1 and arguments[0] in RESOLUTIONS:
            setup_versions(arguments[0])
        elif not arguments:
            setup()
        else:
            raise SetupError(f"unknown: {' '.join(arguments)} (expected nothing, lock, lmms, oldest or newest)")
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
