"""The skeleton of a card, from a clone: what the repository says is filled in, what a person must decide says TODO.

Everything is read out of the commit that is checked out (HEAD); nothing is run. The result is a card that `bench check`
reads: it lists what is still to be written, and then holds the rest against the repository.
"""

import datetime
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bench.cards.faults import UNWRITTEN
from bench.methods.external.commit import Commit, Declaration, declarations_in
from bench.methods.external.git import git, last_message
from tsd.errors import UserError, some

SCRIPTS = ("test", "infer", "inference", "eval", "demo", "predict", "run", "sample", "main", "upscale", "restore", "sr")
"""Words in the names of scripts that restore images, the likeliest first."""
OTHER_SCRIPTS = re.compile(r"train|gradio|app\b|metric|degrad|setup|video|util", re.IGNORECASE)
MEANINGS = (
    ("{seed}", r"seed"),
    ("{weights}/TODO", r"ckpt|checkpoint|weight|pretrain|model.?path|lora|vae.?path|ram.?path"),
    ("{sr}", r"output|out\b|out.?(dir|path)|save|result|dest|sr.?(dir|path)|^-o$"),
    ("{lr}", r"input|in.?(dir|path)|image|img|lr|lq|source|src|^-i$"),
)
"""What a flag means by its name, the first match counts."""
LICENCES = (
    ("Apache-2.0", "Apache License", ""),
    ("CC-BY-NC-SA-4.0", "Attribution-NonCommercial-ShareAlike 4.0", "noncommercial, share alike"),
    ("CC-BY-NC-4.0", "Attribution-NonCommercial 4.0", "noncommercial"),
    ("S-Lab-1.0", "S-Lab License", "noncommercial"),
    ("AGPL-3.0", "GNU AFFERO GENERAL PUBLIC LICENSE", ""),
    ("GPL-3.0", "GNU GENERAL PUBLIC LICENSE", ""),
    ("BSD-3-Clause", "Redistribution and use in source and binary forms", ""),
    ("MIT", "Permission is hereby granted, free of charge", ""),
)
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[\w,-]+\])?\s*((==|>=|<=|~=|!=|<|>)\s*[\w.*+!]+,?\s*)*")


def skeleton(repository: Path, script: str | None = None) -> str:
    """The text of a card, in TOML.

    Args:
        repository: a clone, bare or not.
        script: the Python file that restores a folder of images; None takes the likeliest.

    Raises:
        UserError: no clone at that path, no such script, or no script with flags in it.
    """
    head = git(repository, "rev-parse", "HEAD") if repository.is_dir() else None
    if head is None or head.returncode:
        reason = "no such folder" if head is None else last_message(head.stderr, repository)
        raise UserError(f"{repository} is no clone with a commit ({reason}); `git clone` the repository first")
    commit = Commit(repository, head.stdout.strip())
    day = git(repository, "show", "-s", "--format=%cs", commit.commit).stdout.strip()
    scripts = _scripts(commit)
    if script is None and not scripts:
        raise UserError(f"no Python file of {repository} declares flags; name the one that restores: --script FILE")
    chosen = scripts[0] if script is None else script
    declared = declarations_in(commit.text(chosen))
    if declared is None:
        raise UserError(
            f"{chosen} is no Python file of {repository}; those with flags are {some(scripts, 8) or 'none'}"
        )
    return "\n".join(_lines(repository, commit, day, chosen, declared, [name for name in scripts if name != chosen]))


def _scripts(commit: Commit) -> list[str]:
    """Python files with flags, those that look like a test script of images first."""

    def place(file: str) -> tuple[bool, int, int, str]:
        words = re.split(r"[^a-z]+", PurePosixPath(file).stem.lower())
        likely = [number for number, word in enumerate(SCRIPTS) if word in words]
        return bool(OTHER_SCRIPTS.search(file)), min(likely, default=len(SCRIPTS)), file.count("/"), file

    return sorted(commit.files_with("add_argument", "*.py"), key=place)


def _lines(
    repository: Path, commit: Commit, day: str, script: str, declared: list[Declaration], others: list[str]
) -> Iterator[str]:
    licence, restriction = _licence(commit)
    yield f"# Written by `bench new-card`. What says {UNWRITTEN} is to be decided, what is filled in to be checked."
    yield "# bench/cards/schema.py documents every key, CONTRIBUTING.md walks through a card."
    yield f"display = {_quoted(_repository_name(repository))}"
    yield "steps = 1"
    yield 'kind = "diffusion"'
    yield 'run = "external"'
    yield f'summary = "{UNWRITTEN}: the idea in one line"'
    yield f"licence = {_quoted(licence)}"
    if restriction:
        yield f"restriction = {_quoted(restriction)}"
    yield f'citation = "{UNWRITTEN}: authors, title, venue, arXiv number"'
    yield f"repository = {_quoted(_address(repository))}"
    yield f"commit = {_quoted(commit.commit)}"
    yield 'verified = "never run"'
    yield 'seeding = "none"'
    yield f'weights = [{{ file = "{UNWRITTEN}", urls = ["{UNWRITTEN}"] }}]'
    yield ""
    yield "[environment]"
    yield f"python = {_quoted(_python(commit))}"
    yield f"before = {_quoted(_day_after(day))}"
    yield "requirements = ["
    requirements, left_out = _requirements(commit)
    yield from (f"    {_quoted(pin)}," for pin in requirements or [f"{UNWRITTEN}==0"])
    yield "]"
    yield from (f"# left out: {line}" for line in left_out)
    yield ""
    yield "[command]"
    if others:
        yield f"# other scripts with flags (--script): {some(others, 8)}"
    arguments, used = _arguments(script, declared)
    yield f"arguments = [{', '.join(map(_quoted, arguments))}]"
    yield 'outputs = "{name}.png"'
    for declaration in declared:
        for flag, line in declaration.lines.items():
            if flag.startswith("-"):
                told = "" if declaration.default is None else f"  # {_one_line(declaration.default)}"
                yield f"{'' if flag in used else '# '}flags.{flag} = {_quoted(f'{script}:{line}')}{told}"
    yield '# links."PLACE/IN/CHECKOUT" = "a weight above"'
    yield ""
    yield '# A seed of its own for every image, by one line in the loop; then seeding is "image":'
    yield "# [[patches]]"
    yield f"# file = {_quoted(script)}"
    yield '# find = "for path in paths:"'
    yield '# replace = "for path in paths:\\n    import bench_seed; bench_seed.seed(path)"'
    yield '# reason = "a seed of its own for every image"'
    yield ""


def _arguments(script: str, declared: list[Declaration]) -> tuple[list[str], set[str]]:
    """The command as the names of the flags suggest it, and the flags in it; what is required beside them says TODO."""
    arguments, used, taken = [script], set[str](), set[str]()
    for declaration in declared:
        flag, meaning = max(declaration.lines, key=len, default=""), _meaning(declaration)
        if meaning in taken and meaning in ("{lr}", "{sr}", "{seed}"):
            meaning = ""
        if not meaning and declaration.keywords.get("required"):
            meaning = UNWRITTEN
        if flag and meaning:
            taken.add(meaning)
            used.add(flag)
            arguments += [flag, meaning] if flag.startswith("-") else [meaning]
    missing = [meaning for meaning in ("{lr}", "{sr}") if meaning not in taken]
    return [*arguments, *(f"{UNWRITTEN}={meaning}" for meaning in missing)], used


def _meaning(declaration: Declaration) -> str:
    """What a flag takes, by its names; empty for a switch, and where the names say nothing."""
    if "action" in declaration.keywords:
        return ""
    said = (meaning for meaning, words in MEANINGS for flag in declaration.lines if re.search(words, flag, re.I))
    return next(said, "")


def _licence(commit: Commit) -> tuple[str, str]:
    """The identifier of the licence by its text, and what it forbids."""
    for file in commit.files:
        if re.fullmatch(r"(licen[cs]e|copying)(\.\w+)?", file, re.IGNORECASE):
            text = " ".join((commit.text(file) or "").split())
            for name, words, forbids in LICENCES:
                if words.lower() in text.lower():
                    return name, forbids
            return f"{UNWRITTEN}: see {file}", ""
    return f"{UNWRITTEN}: the repository states none", ""


def _address(repository: Path) -> str:
    """Where the clone came from, as an address that anybody can use."""
    url = git(repository, "config", "--get", "remote.origin.url").stdout.strip().removesuffix(".git")
    ssh = re.fullmatch(r"(?:ssh://)?git@([^:/]+)[:/](.+)", url)
    if ssh:
        return f"https://{ssh[1]}/{ssh[2]}"
    return url if url.startswith("https://") else f"{UNWRITTEN}: https://github.com/OWNER/NAME"


def _repository_name(repository: Path) -> str:
    address = _address(repository)
    return address.rpartition("/")[2] if UNWRITTEN not in address else repository.resolve().name.removesuffix(".git")


def _python(commit: Commit) -> str:
    """The version that the repository's own environment or README names, else 3.10."""
    for file in sorted(commit.files, key=lambda name: not name.endswith((".yml", ".yaml"))):
        if "/" not in file and file.lower().endswith((".yml", ".yaml", ".md", ".toml")):
            found = re.search(r"python\s*(?:=|==|>=|\s|-)\s*(3\.\d+)", commit.text(file) or "", re.IGNORECASE)
            if found:
                return found[1]
    return "3.10"


def _day_after(day: str) -> str:
    return (datetime.date.fromisoformat(day) + datetime.timedelta(days=1)).isoformat()


def _requirements(commit: Commit) -> tuple[list[str], list[str]]:
    """The pins of requirements.txt, or of the pip part of environment.yml, and the lines that cannot be one."""
    files = [name for name in commit.files if re.fullmatch(r"(.*/)?(requirements.*\.txt|environment\.ya?ml)", name)]
    for file in sorted(files, key=lambda name: (name.count("/"), not name.endswith("requirements.txt"), name)):
        lines = [line.split("#")[0].strip() for line in (commit.text(file) or "").splitlines()]
        if not file.endswith(".txt"):
            lines = [line.removeprefix("- ") for line in lines if line.startswith("- ") and "==" in line]
        lines = [line for line in lines if line]
        pins = [re.sub(r"\s+", "", line) for line in lines if PIN.fullmatch(line)]
        if pins:
            return list(dict.fromkeys(pins)), [line for line in lines if not PIN.fullmatch(line)]
    return [], []


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a string of JSON is one of TOML


def _one_line(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
