"""The house: which room may import which, the folders that are no modules, and the console scripts."""

import ast
import contextlib
import graphlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room is a folder, or a module at the top, of a package. It may import rooms on floors below its own, and itself.
FLOORS = {
    "tsd": (
        {"errors", "seeds", "precision", "console"},
        {"files"},
        {"images", "config"},
        {"writing"},
        {"batch", "model", "presets"},
        {"fast"},
        {"algorithm", "prompts", "restore"},
        {"app", "data", "export", "memory"},
        {"train"},
        {"commands", "mini"},
        {"cli"},
    ),
    "bench": (
        {"errors", "provenance"},
        {"options", "cards", "paper", "records", "ranks"},
        {"store", "device"},
        {"testsets", "metrics"},
        {"pixels"},
        {"methods", "report"},
        {"fetch", "publish", "run", "site", "verify"},
        {"ablation", "study"},
        {"latency"},
        {"commands"},
        {"cli"},
    ),
}
GROUND = {"errors", "files", "precision", "config", "console"}
"""The modules of `tsd` that `bench` may import anywhere: they need the standard library, and tqdm, alone."""
READER = {"images", "batch"}
"""The one reader of images and the one batch of them, which `bench` may import too: they need no torch."""


def imported_modules(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it; of `from a import b` both `a` and `a.b`."""
    return set().union(*map(named_by, ast.walk(ast.parse(path.read_text()))))


def named_by(node: ast.AST) -> set[str]:
    """The modules that an import statement names; none of any other node."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def room_of(module: str) -> str:
    """`model` for `tsd.model.lora`; empty for the package itself."""
    return [*module.split("."), ""][1]


def sources(package: str) -> Iterator[Path]:
    return (ROOT / package).rglob("*.py")


def upward(package: str) -> list[str]:
    """Every import of `package` that does not lead to a floor below, as "file imports module"."""
    floor = {room: number for number, rooms in enumerate(FLOORS[package]) for room in rooms}
    found = []
    for path in sources(package):
        own = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for module in imported_modules(path):
            room = room_of(module) if module.partition(".")[0] == package else ""
            if room in floor and room != own and own != "__init__" and floor[room] >= floor[own]:
                found.append(f"{path.relative_to(ROOT)} imports {module}")
    return sorted(found)


@pytest.mark.parametrize("package", ["tsd", "bench"])
def test_every_room_is_on_a_floor(package: str) -> None:
    rooms = {path.relative_to(ROOT / package).parts[0].removesuffix(".py") for path in sources(package)}
    assert rooms - {"__init__"} == set().union(*FLOORS[package])
    assert len([room for room in rooms if (ROOT / package / f"{room}.py").exists()]) <= 11


@pytest.mark.parametrize("package", ["tsd", "bench"])
def test_imports_lead_down(package: str) -> None:
    assert upward(package) == []


def test_tsd_never_imports_bench() -> None:
    assert [
        path for path in sources("tsd") if any(name.partition(".")[0] == "bench" for name in imported_modules(path))
    ] == []


ABLATION = ROOT / "bench" / "ablation"
DOMAINS = {path.parent.name for path in ABLATION.glob("*/domain.py")}
"""Folders of `bench/ablation` that train. Beside them are the engine (modules at the top), `report` and `figures`."""


def test_bench_imports_of_tsd_the_ground_and_elsewhere_in_few_rooms() -> None:
    rooms = [ROOT / "bench" / name for name in ("methods/tsd_sr", "methods/osediff", "ablation/figures")]
    rooms += [ABLATION / domain for domain in DOMAINS]
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources("bench")
        for module in imported_modules(path)
        if module.startswith("tsd.")
        and room_of(module) not in GROUND | READER
        and not any(map(path.is_relative_to, rooms))
    ]
    assert found == []


def test_the_mixture_takes_of_tsd_the_algorithm_and_its_noise() -> None:
    taken = {
        module
        for path in (ABLATION / "mixture").glob("*.py")
        for module in imported_modules(path)
        if module.startswith("tsd.") and room_of(module) not in GROUND | {"algorithm", "seeds"}
    }
    assert {name for name in taken if not name.startswith("tsd.model.process")} - {"tsd.model"} == set()


def test_domains_are_known_by_name_alone() -> None:
    """Nothing imports one, not even another domain, but by `open_domain` and `open_subject`."""
    assert {"mixture", "text"} <= DOMAINS
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in ABLATION.rglob("*.py")
        for module in imported_modules(path)
        for domain in DOMAINS
        if f"{module}.".startswith(f"bench.ablation.{domain}.") and not path.is_relative_to(ABLATION / domain)
    ]
    assert found == []


def test_of_a_domain_only_its_subject_knows_the_figures() -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for domain in (*DOMAINS, "report", "")
        for path in (ABLATION / domain).glob("*.py")
        for module in imported_modules(path)
        if module.startswith("bench.ablation.figures") and path.name != "subject.py"
    ]
    assert found == []


def test_kinds_of_methods_do_not_know_each_other() -> None:
    methods = ROOT / "bench" / "methods"
    kinds = {path.parent.name for path in methods.glob("*/__init__.py")}
    assert {"tsd_sr", "osediff", "spandrel", "published", "external"} == kinds
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for kind in kinds
        for path in (methods / kind).rglob("*.py")
        for module in imported_modules(path)
        for other in kinds - {kind}
        if f"{module}.".startswith(f"bench.methods.{other}.")
    ]
    assert found == []


def test_the_ground_and_the_report_need_no_torch() -> None:
    ground = [f"tsd.{name}" for name in sorted(GROUND | READER)]
    folders = ("bench/report", "bench/ablation/report")
    report = [
        f"{folder.replace('/', '.')}.{path.stem}" for folder in folders for path in sorted((ROOT / folder).glob("*.py"))
    ]
    code = f"""
import importlib, sys
for name in {ground + report}:
    importlib.import_module(name)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("package", ["tsd", "bench"])
def test_every_folder_says_in_one_sentence_what_lives_there(package: str) -> None:
    handing_on = {
        ROOT / "tsd/restore",
        ROOT / "bench/run",
        ROOT / "bench/methods",
        ROOT / "bench/metrics",
        ROOT / package,
    }
    for folder in {path.parent for path in sources(package)}:
        tree = ast.parse((folder / "__init__.py").read_text())
        sentence = ast.get_docstring(tree) or ""
        assert sentence.endswith("."), folder
        if folder not in handing_on:
            assert len(tree.body) == 1, folder
            assert "\n" not in sentence, folder


def test_the_datasets_folder_is_no_package() -> None:
    offending = [path for folder in ("datasets", "reports") for path in (ROOT / folder).rglob("*.py")]
    assert offending == []
    spec = importlib.util.find_spec("datasets")
    assert spec is not None
    assert spec.origin is not None


def test_datasets_is_the_library_from_the_repository_root() -> None:
    code = "import importlib.util; print(importlib.util.find_spec('datasets').origin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_file(), done.stderr
    assert not Path(done.stdout.strip()).is_relative_to(ROOT / "datasets")


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


def imported_at_once(path: Path) -> set[str]:
    """As `imported_modules`, of the statements that run while the module is imported."""
    names, waiting = set(), list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            names |= named_by(node)
            waiting += ast.iter_child_nodes(node)
    return names


def import_graph(root: Path, package: str) -> dict[str, set[str]]:
    """The modules of a package, and for each those that must be imported before it.

    `from a import b` needs `a.b` alone where that is a module: `a` itself, a folder above, was begun before.
    """
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in (root / package).rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph = {}
    for module, path in modules.items():
        named = imported_at_once(path) & modules.keys()
        graph[module] = {name for name in named if not any(other.startswith(f"{name}.") for other in named)} - {module}
    return graph


@pytest.mark.parametrize("package", ["tsd", "bench"])
def test_every_module_can_be_imported_first(package: str) -> None:
    """Every module can be imported, and no two need each other: then any order will do."""
    graph = import_graph(ROOT, package)
    assert len(graph) > 50
    assert list(graphlib.TopologicalSorter(graph).static_order())
    for module in graph:
        if not module.endswith("seed_module.bench_seed"):  # it stands alone, on the path of other programs
            importlib.import_module(module)


def test_modules_that_need_each_other_are_found(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    for name, text in {"__init__": "", "a": "from room import b", "b": "def f(): ...\nfrom room.c import g"}.items():
        (tmp_path / "room" / f"{name}.py").write_text(text)
    for text, cycle in (("def g():\n    import room.a", False), ("if True:\n    import room.a", True)):
        (tmp_path / "room" / "c.py").write_text(text)
        sorter = graphlib.TopologicalSorter(import_graph(tmp_path, "room"))
        with pytest.raises(graphlib.CycleError) if cycle else contextlib.nullcontext():
            sorter.prepare()
