"""The arrow between the packages, the folder that must not be a module, and the console scripts."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def users_of(package: str, imported: str) -> set[str]:
    files = (ROOT / package).rglob("*.py")
    return {
        str(path.relative_to(ROOT))
        for path in files
        if any(name == imported or name.startswith(f"{imported}.") for name in imported_modules(path))
    }


def test_tsd_never_imports_bench() -> None:
    assert users_of("tsd", "bench") == set()


def test_bench_imports_the_ground_of_tsd_and_its_networks_in_two_places() -> None:
    ground = {"tsd.errors", "tsd.files", "tsd.config"}
    others = {name for path in (ROOT / "bench").rglob("*.py") for name in imported_modules(path)} - ground
    networks = {name for name in others if name.startswith("tsd.")}
    assert {user for name in networks for user in users_of("bench", name)} == {
        "bench/methods/tsd_sr/method.py",
        "bench/methods/osediff/method.py",
    }


def test_the_datasets_folder_is_no_package() -> None:
    offending = [path for folder in ("datasets", "reports") for path in (ROOT / folder).rglob("*.py")]
    assert offending == []
    spec = importlib.util.find_spec("datasets")
    assert spec is not None
    assert spec.origin is not None


def test_datasets_is_the_library_from_the_repository_root() -> None:
    code = "import datasets; print(datasets.Dataset.from_dict({'a': [1]}).num_rows)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


@pytest.mark.parametrize("script", ["tsd", "bench"])
def test_console_scripts_answer_quickly_and_without_torch(script: str) -> None:
    code = f"import sys; from {script}.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    path = Path(sys.executable).with_name(script)
    shown = subprocess.run([path, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "examples" in shown.stdout
    version = subprocess.run([path, "--version"], capture_output=True, text=True)
    assert version.stdout.startswith("tsd-sr-bench ")
    assert subprocess.run([path, "no-such-verb"], capture_output=True).returncode == 2


def test_every_module_of_the_harness_can_be_imported_first() -> None:
    code = """
import importlib, pkgutil, sys
import bench
names = [module.name for module in pkgutil.walk_packages(bench.__path__, "bench.") if "bench_seed" not in module.name]
for name in names:
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "bench"]:
        del sys.modules[loaded]
    importlib.import_module(name)
print(len(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
