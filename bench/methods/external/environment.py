"""The environment of a method: an interpreter and the card's pins, installed by uv.

It lies in the cache under a hash of Python version, requirements and platform, so that other pins are another
environment and the same pins are built once for all methods, runs and processes. `environment.json` is written last:
a folder without it was left by an interrupted build, and is removed.
"""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cards.card import Card, Environment, argument_of
from bench.errors import without_paths
from bench.methods.external.cache import ENVIRONMENTS, display_path, locked
from bench.methods.external.process import require_success, run_tool
from tsd.errors import UserError
from tsd.files import write_atomic

if TYPE_CHECKING:
    from bench.options import RunOptions


MARKER = "environment.json"
PYTHON_VARIABLES = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH")
UV_VARIABLES = (
    "UV_EXCLUDE_NEWER",
    "UV_PYTHON",
    "UV_CONSTRAINT",
    "UV_OVERRIDE",
    "UV_SYSTEM_PYTHON",
    "UV_TARGET",
    "UV_PREFIX",
)


def pins_sha256(environment: Environment) -> str:
    """Hashes everything that decides what is installed; the hash names the environment."""
    content = {
        "python": environment.python,
        "requirements": list(environment.requirements),
        "before": environment.before,
        "platform": [sys.platform, platform.machine()],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def environment_path(card: Card, options: "RunOptions") -> Path:
    """Where the card's environment lies or will lie."""
    assert card.environment is not None
    return options.cache() / ENVIRONMENTS / pins_sha256(card.environment)[:16]


def python_of(place: Path) -> Path:
    return place / "bin" / "python"


def is_built(card: Card, options: "RunOptions") -> bool:
    """Whether the card's environment is built; looks at files only."""
    place = environment_path(card, options)
    return (place / MARKER).is_file() and python_of(place).exists()


def uv_program() -> str | None:
    """The `uv` of this Python, else of the PATH; None where there is neither."""
    if importlib.util.find_spec("uv") is not None:
        import uv

        try:
            return os.fspath(uv.find_uv_bin())
        except FileNotFoundError:
            pass
    return shutil.which("uv")


def build(card: Card, options: "RunOptions") -> Path:
    """Builds the card's environment unless it is there. Other processes wait for the one that builds it.

    Raises:
        UserError: no uv; no such Python; a requirement that cannot be installed, with the last lines of uv's output.
    """
    assert card.environment is not None
    place = environment_path(card, options)
    if is_built(card, options):
        return place
    uv = uv_program()
    if uv is None:
        raise UserError(f"{card.display} needs an environment of its own, and there is no uv here: `pip install uv`")
    with locked(place, f"the environment of {card.display}"):
        if is_built(card, options):
            return place
        shutil.rmtree(place, ignore_errors=True)
        log = place.with_name(f"{place.name}.log")
        log.unlink(missing_ok=True)
        try:
            _install(card.environment, card.display, uv, place, log)
        except UserError as error:
            text = without_paths(str(error), {place: "environment", options.cache(): "cache"})
            raise UserError(f"{text}\nthe whole output is in {display_path(options, log)}") from None
        finally:
            if not (place / MARKER).is_file():
                shutil.rmtree(place, ignore_errors=True)
    return place


def describe(card: Card, options: "RunOptions") -> dict[str, Any]:
    """Describes a built environment: interpreter, packages, the hash of its pins, the uv that built it.

    Raises:
        UserError: it is not built.
    """
    if not is_built(card, options):
        raise UserError(f"the environment of {card.display} is not built: `bench install {argument_of(card)}`")
    return json.loads((environment_path(card, options) / MARKER).read_text(encoding="utf-8"))


def _install(environment: Environment, display: str, uv: str, place: Path, log: Path) -> None:
    """Builds in place, since scripts of an environment name its path, and writes the marker last."""
    variables = {key: value for key, value in os.environ.items() if key not in (*PYTHON_VARIABLES, *UV_VARIABLES)}
    python = python_of(place)

    def step(argv: list[str], what: str) -> None:
        ending = run_tool(argv, title=f"{display}: {what}", log=log, cwd=place.parent, env=variables)
        require_success(
            ending, log, f"the environment of {display} could not be built: {what}", "uv's last lines were:"
        )

    step([uv, "venv", "--no-project", "--python", environment.python, str(place)], f"Python {environment.python}")
    pins = place / "requirements.txt"
    write_atomic(pins, "".join(f"{line}\n" for line in environment.requirements).encode())
    dated = ["--exclude-newer", environment.before] if environment.before else []
    step([uv, "pip", "install", "--python", str(python), "-r", str(pins), *dated], "packages")
    content = {
        "python": _output([str(python), "-c", "import platform; print(platform.python_version())"], variables),
        "requirements": list(environment.requirements),
        "before": environment.before,
        "pins_sha256": pins_sha256(environment),
        "packages": _packages(_output([uv, "pip", "freeze", "--python", str(python)], variables)),
        "platform": platform.platform(),
        "uv": _output([uv, "--version"], variables),
    }
    write_atomic(place / MARKER, (json.dumps(content, indent=2) + "\n").encode())


def _packages(freeze: str) -> dict[str, str]:
    """Returns versions by name. For a package from an address it is the address, without the path of a local file."""
    found = {}
    for line in freeze.splitlines():
        name, at, version = line.replace(" @ ", "==", 1).partition("==")
        if at:
            found[name] = "from a local file" if version.startswith("file:") else version
    return found


def _output(argv: list[str], variables: dict[str, str]) -> str:
    try:
        done = subprocess.run(argv, env=variables, capture_output=True, text=True, timeout=120, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        raise UserError(f"{Path(argv[0]).name} failed in the new environment: {error}") from error
    return done.stdout.strip()
