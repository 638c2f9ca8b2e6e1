"""The documents: commands are parsed, Python is run, links and paths lead somewhere, and the README stays short."""

import argparse
import ast
import contextlib
import functools
import io
import os
import pkgutil
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import bench.cli
import bench.methods
import bench.metrics
import tsd.cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "datasets/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
PARSERS = {"tsd": functools.cache(tsd.cli.build_parser), "bench": functools.cache(bench.cli.build_parser)}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"--[a-z][a-z0-9-]*")
ACCELERATE_OPTIONS = {"--cpu"}  # the others of accelerate's have underscores


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text) if language in languages]


def inline(text: str) -> list[str]:
    """Code between single backticks, on one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def calls(script: str) -> Iterator[list[str]]:
    """Every command of a piece of shell as its words, those inside $(…) first. `…` stands for what is left out."""
    script = script.replace("\\\n", " ")
    for inner in re.findall(r"\$\(([^()]*)\)", script):
        yield from calls(inner)
    script = re.sub(r"\$\(which (\w+)\)", r"\1", script)
    script = re.sub(r"\$\([^()]*\)", "INNER", script)
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word[0] not in "&|;<>":
                words.append(word)
            elif words:
                yield without_launcher([word for word in words if word != "…"])
                words = []


def without_launcher(words: list[str]) -> list[str]:
    """`accelerate launch … tsd train …` → `tsd train …`"""
    if words[:2] == ["accelerate", "launch"]:
        programs = [index for index, word in enumerate(words) if word in PARSERS]
        assert programs, f"accelerate launches neither tsd nor bench: {shlex.join(words)}"
        return words[programs[0] :]
    return words


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments by the program's own parser; fails with what the parser says."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            return PARSERS[words[0]]().parse_args(words[1:])
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"`{shlex.join(words)}`: {said.getvalue().splitlines()[-1]}", pytrace=False)
        return argparse.Namespace(verb=None)


def check_call(words: list[str]) -> None:
    """One command: names and options are those that the programs and the noxfile know."""
    if words[0] == "nox":
        check_nox(words[1:])
    if words[0] not in PARSERS:
        return
    args = parse(words)
    if words[0] == "bench":
        named = [*(getattr(args, "methods", None) or []), *filter(None, [getattr(args, "method", None)])]
        for name in named:
            if not name.isupper() and "card:" not in name:
                bench.methods.get_method(name)
        for name in getattr(args, "metrics", None) or []:
            bench.metrics.get_metric(name)


def check_script(script: str) -> None:
    for words in calls(script):
        check_call(words)


def check_nox(arguments: list[str]) -> None:
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    known = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    split = arguments.index("--") if "--" in arguments else len(arguments)
    sessions, others = arguments[:split], arguments[split + 1 :]
    if sessions[:1] == ["-s"]:
        assert set(sessions[1:]) <= known, f"noxfile.py has no session {sorted(set(sessions[1:]) - known)}"
    else:
        assert sessions in ([], ["-l"])
    for name in sessions[1:]:
        kind, number = re.fullmatch(r"reproduce_(table|figure)(\d)|.*", name).groups()  # pyright: ignore
        if (kind, number) == ("figure", "8"):
            assert others == []  # it takes none
        elif kind == "figure":
            check_call(["bench", "figure", number, *others])
        elif number in ("4", "6"):
            check_call(["bench", "sweep", f"mixture-table{number}", *others])
        elif number == "3":
            check_call(["bench", "latency", *others])
        elif number:
            check_call(["bench", "run", "--table", f"table{number}", *others])
        elif name == "ablations":
            check_call(["bench", "sweep", *others])


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    inner = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: verb for verbs in inner for name, verb in verbs.items()}


def subparsers(program: str) -> dict[str, argparse.ArgumentParser]:
    return verbs_of(PARSERS[program]())


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a verb and, where it has verbs of its own, of these."""
    own = {option for action in parser._actions for option in action.option_strings}
    return own.union(*(options_of(verb) for verb in verbs_of(parser).values()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_commands_in_blocks_are_understood(path: Path) -> None:
    for script in blocks(path.read_text(encoding="utf-8"), "", "sh", "bash"):
        check_script(script)


SOURCES = sorted((*(ROOT / "tsd").rglob("*.py"), *(ROOT / "bench").rglob("*.py")))
FILLED_IN = ("1", "mini", "table1", "bicubic")
"""What takes the place of values in printed advice: one of them has to make a command that the parser takes."""


def printed(path: Path) -> Iterator[tuple[int, str]]:
    """Every text of a module with its line, but for docstrings; "\\0" stands for the values in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [node.body for node in ast.walk(tree) if hasattr(node, "body") and isinstance(node.body, list)]
    left_out = {id(part.value) for body in bodies for part in body if isinstance(part, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def advice(text: str) -> Iterator[str]:
    """The commands in a text: those between backticks, and the examples of a verb, without what follows them."""
    for code in re.findall(r"`([^`]+)`", text):
        if code.split()[0] in PARSERS and len(code.split()) > 1 and "VERB" not in code:
            yield " ".join(code.split())
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if re.match(r"  (tsd|bench) \w", line):
            yield re.split(r"\s{2,}", line.strip())[0].replace("…", "x")


def fault_of(command: str) -> str:
    """What the programs say to a command; empty if one way to fill in its values is understood."""
    found = ""
    for value in dict.fromkeys(FILLED_IN if "\0" in command else ("",)):
        try:
            check_script(command.replace("\0", value))
        except (AssertionError, pytest.fail.Exception, bench.methods.UserError) as error:
            found = found or str(error)
        else:
            return ""
    return found


@pytest.mark.parametrize("package", ["tsd", "bench"])
def test_advice_that_is_printed_can_be_followed(package: str) -> None:
    """Verbs and options alone are looked up, as in the documents; whole commands are parsed."""
    found = []
    for path in SOURCES:
        for line, text in printed(path) if path.is_relative_to(ROOT / package) else ():
            for command in advice(text):
                program, *rest = command.split()
                verb = PARSERS[program]()
                while rest and rest[0] in verbs_of(verb):
                    verb = verbs_of(verb)[rest.pop(0)]
                if verb.prog != program and all(OPTION.fullmatch(word) for word in rest):
                    fault = "" if set(rest) <= options_of(verb) else f"unknown: {command}"
                else:
                    fault = fault_of(command)
                found += [f"{relative(path)}:{line}: {command!r}: {fault}"] if fault else []
    assert found == []


def test_options_that_are_printed_exist() -> None:
    # Of hf, tensorboard and git.
    of_others = {"--local-dir", "--repo-type", "--include", "--exclude", "--logdir", "--all"}
    known = {option for name in PARSERS for parser in subparsers(name).values() for option in options_of(parser)}
    found = [
        f"{relative(path)}:{line}: {option}"
        for path in SOURCES
        for line, text in printed(path)
        if " " in text  # other texts are the options themselves, as programs take them
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+\b(?!_)", text)
        if option not in known | of_others
    ]
    assert found == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_commands_in_sentences_are_understood(path: Path) -> None:
    """A whole command is parsed; a verb alone, or with names of options, is looked up."""
    every_option = {option for name in PARSERS for parser in subparsers(name).values() for option in options_of(parser)}
    for code in inline(path.read_text(encoding="utf-8")):
        first, *_ = code.split()
        if OPTION.fullmatch(first):
            assert first in every_option | ACCELERATE_OPTIONS, f"no verb has the option {first}"
        if first not in (*PARSERS, "nox", "accelerate") or (first == "accelerate" and "$(which" not in code):
            continue
        for words in calls(code):
            if words[0] in PARSERS and len(words) > 1 and all(OPTION.fullmatch(word) for word in words[2:]):
                verbs = subparsers(words[0])
                assert words[1] in verbs, f"{words[0]} has no verb {words[1]}"
                assert set(words[2:]) <= options_of(verbs[words[1]]), code
            elif len(words) > 1 or words[0] == "nox":
                check_call(words)


def test_a_wrong_command_is_found() -> None:
    for script in (
        "tsd restore photo.jpg --no-such-option",
        "bench run --table table1 --profile huge",
        'accelerate launch --config_file "$(tsd no-such-verb)/x.yaml" $(which tsd) train',
        "accelerate launch --num_processes 2 $(which bench) no-such-verb",
        "ls && bench run --methods bicubik   # a comment",
        "nox -s no_such_session",
        "nox -s reproduce_table1 -- --profile huge",
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception, bench.methods.UserError)):
            check_script(script)


EXAMPLES = [
    pytest.param(code, id=f"{relative(path)}-{number}")
    for path in DOCUMENTS
    for number, code in enumerate(blocks(path.read_text(encoding="utf-8"), "python"))
]


@pytest.mark.slow
@pytest.mark.parametrize("code", EXAMPLES)
def test_python_examples_run(code: str, tmp_path: Path, warm: Any) -> None:
    """In a folder with `photo.jpg` and `photos/`, on the mini model."""
    photographs = sorted((ROOT / "datasets" / "mini" / "test_HR").glob("*.png"))[:3]
    (tmp_path / "photos").mkdir()
    for photograph in photographs:
        shutil.copy(photograph, tmp_path / "photos")
    shutil.copy(ROOT / "datasets" / "mini" / "test_LR" / photographs[0].name, tmp_path / "photo.jpg")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = warm.run("-c", code, cwd=tmp_path, env=environment)
    assert done.returncode == 0, f"{code}\n{done.stderr[-3000:]}"


def test_both_packages_have_an_example_in_the_readme() -> None:
    examples = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    for name in ("bench", "tsd"):
        assert any(f"from {name}." in code for code in examples)


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8000


def test_the_readme_begins_with_the_two_commands() -> None:
    first = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "")[0]
    expected = [["pip", "install", "nox[uv]"], ["nox", "-s", "reproduce_table1"], ["nox", "-s", "tests"]]
    assert list(calls(first))[:3] == expected


def test_the_file_guide_is_what_the_folders_say_of_themselves() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    guide = dict(re.findall(r"^\| `((?:tsd|bench)/[\w/]+)` \| (.+) \|$", text, re.MULTILINE))
    said = {}
    for path in sorted((*(ROOT / "tsd").rglob("__init__.py"), *(ROOT / "bench").rglob("__init__.py"))):
        folder = path.parent
        if folder.parent != ROOT and folder.name != "seed_module":  # the latter is on the path of other programs
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            said[relative(folder)] = " ".join(docstring.split("\n\n")[0].split())
    assert guide == said


def headings(path: Path) -> set[str]:
    """The anchors that a page's headings have on the web."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = unquote(target).partition("#")
        found = path.parent / name if name else path
        assert found.exists(), target
        assert not anchor or anchor in headings(found), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_paths_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w./:$-])((?:tsd|bench|tests|docs|datasets|reports)/[\w./*-]*\w)", text)
    real = {name for name in named if not re.search(r"\b(NAME|METHOD)\b", name)}
    assert sorted(name for name in real if not list(ROOT.glob(name))) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_python_names_exist(path: Path) -> None:
    """`tsd.model.lora.role` and the like: modules, classes and functions of this project."""
    unknown = {}
    for code in inline(path.read_text(encoding="utf-8")):
        for name in re.findall(r"(?<![\w./-])(?:tsd|bench)(?:\.[A-Za-z_]\w*)+", code):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError) as error:
                unknown[name] = str(error)
    assert unknown == {}
