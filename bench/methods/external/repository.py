"""The official repository at the pinned commit, as a checkout of our own with the card's patches.

It comes from the card's address, or from a clone or bundle under --repo-dir where there is no network. Only the commit
is used, never the work tree of a clone. The checkout is made beside its place and renamed once it is complete. The
patched files are in its index, so that git tells whether anything was changed since.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cards.card import Card, Patch
from bench.errors import without_paths
from bench.methods.external.cache import REPOSITORIES, display_path, locked
from bench.methods.external.git import git, git_program, last_message, variables
from bench.methods.external.process import require_success, run_tool
from tsd.errors import UserError, some
from tsd.files import write_atomic

if TYPE_CHECKING:
    from bench.options import RunOptions


MARKER = "tsd-bench.json"
PROBE_SECONDS = 20.0
GIVE_UP_ON_STALL = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30")
REPO_DIR_HINT = "give a clone or bundle of it with --repo-dir"


@dataclass(frozen=True)
class Origin:
    """What the repository is fetched from.

    Attributes:
        kind: "address", "clone" or "bundle".
        place: the address or path, as git takes it.
        shown: its name in messages, which do not name paths of this machine.
    """

    kind: str
    place: str
    shown: str


def checkout_path(card: Card, options: "RunOptions") -> Path:
    """Where the card's checkout lies or will lie."""
    patched = f"-{patches_sha256(card.patches)[:8]}" if card.patches else ""
    return options.cache() / REPOSITORIES / f"{card.name}-{card.commit[:12]}{patched}"


def patches_sha256(patches: Sequence[Patch]) -> str:
    """One hash over what the patches do, in their order."""
    return hashlib.sha256(json.dumps([[p.file, p.find, p.replace] for p in patches]).encode()).hexdigest()


def is_checked_out(card: Card, options: "RunOptions") -> bool:
    """Whether the checkout is there; looks at a file name only."""
    return (checkout_path(card, options) / ".git" / MARKER).is_file()


def find_origin(card: Card, options: "RunOptions") -> Origin:
    """What the repository is fetched from. Looks at file names only.

    Under --repo-dir it is a clone NAME/, a bare one NAME.git/ or a bundle NAME.bundle, where NAME is the repository's
    or the card's; or --repo-dir is itself one of these.

    Raises:
        UserError: --repo-dir has none of them.
    """
    if options.repo_dir is None:
        return Origin("address", card.repository, card.repository)
    folder = options.repo_dir.expanduser().absolute()
    official = card.repository.rstrip("/").rpartition("/")[2].removesuffix(".git")
    for name in dict.fromkeys((official, card.name)):
        for candidate in (name, f"{name}.git", f"{name}.bundle"):
            kind = _kind(folder / candidate)
            if kind:
                return Origin(kind, str(folder / candidate), f"{candidate} in --repo-dir")
    kind = _kind(folder)
    if kind:
        return Origin(kind, str(folder), f"{folder.name} (--repo-dir)")
    raise UserError(
        f"--repo-dir holds no repository of {card.display}; expected a clone {official}/ or {official}.git/, or a "
        f"bundle {official}.bundle (`git bundle create {official}.bundle --all` in a clone of {card.repository})"
    )


def check(card: Card, options: "RunOptions") -> None:
    """Finds what is wrong before anything is made. It takes a fraction of a second and needs no network.

    Raises:
        UserError: no git; --repo-dir without this repository, or with a work tree whose state is not what would be run;
            a checkout that was changed.
    """
    git_program()
    made = is_checked_out(card, options)
    if options.repo_dir is not None:
        try:
            origin = find_origin(card, options)
        except UserError:
            if not made:
                raise
        else:
            _check_origin(card, origin)
    if made:
        _check_unchanged(card, options)


def checkout(card: Card, options: "RunOptions") -> Path:
    """Makes our own work tree at the card's commit with its patches, unless it is there.

    Raises:
        UserError: `check` fails, the commit is not in the repository, a patch does not apply, or there is no network.
    """
    place = checkout_path(card, options)
    with locked(place, f"the checkout of {card.display}"):
        check(card, options)
        if is_checked_out(card, options):
            return place
        part = place.with_name(f".{place.name}.part")
        for leftover in (part, place):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            _fetch_commit(card, find_origin(card, options), part)
            _patch(card, part)
            tree = git(part, "write-tree").stdout.strip()
            content = {"repository": card.repository, "commit": card.commit, "tree": tree}
            write_atomic(part / ".git" / MARKER, (json.dumps(content, indent=2) + "\n").encode())
            os.rename(part, place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return place


def _kind(path: Path) -> str:
    """Tells what lies at `path`: "clone", "bundle", or "" for neither."""
    if path.is_file():
        return "bundle" if path.suffix == ".bundle" else ""
    bare = (path / "HEAD").is_file() and (path / "objects").is_dir()
    return "clone" if bare or (path / ".git").exists() else ""


def _check_origin(card: Card, origin: Origin) -> None:
    """Checks that a local clone has the commit, and that its work tree, if it has one, is what will be run."""
    if origin.kind != "clone":
        return
    place = Path(origin.place)
    inside = git(place, "rev-parse", "--is-inside-work-tree")
    if inside.returncode:
        raise UserError(f"{origin.shown} cannot be read by git: {last_message(inside.stderr, place)}")
    if git(place, "cat-file", "-e", f"{card.commit}^{{commit}}").returncode:
        raise UserError(
            f"{origin.shown} does not contain the commit {card.commit}, which {card.display} is pinned to: fetch it "
            f"there from {card.repository}"
        )
    if inside.stdout.strip() != "true":
        return
    head = git(place, "rev-parse", "HEAD").stdout.strip()
    if head != card.commit:
        raise UserError(
            f"{origin.shown} is at commit {head[:12]}, expected {card.commit[:12]}, which {card.display} is pinned to. "
            f"Another commit would not be run: `git checkout {card.commit}` there, or give a bare clone"
        )
    changed = git(place, "status", "--porcelain", "--untracked-files=no").stdout.splitlines()
    if changed:
        raise UserError(
            f"{origin.shown} has local changes ({some([line[3:] for line in changed])}), which would not be run: "
            "`git stash` them, or make them patches of a card of your own"
        )


def _check_unchanged(card: Card, options: "RunOptions") -> None:
    place = checkout_path(card, options)
    changed = git(place, "diff", "--name-only").stdout.split()
    recorded = json.loads((place / ".git" / MARKER).read_text(encoding="utf-8"))
    same = (git(place, "rev-parse", "HEAD").stdout.strip(), git(place, "write-tree").stdout.strip()) == (
        card.commit,
        recorded["tree"],
    )
    if changed or not same:
        raise UserError(
            f"the checkout of {card.display} was changed since it was made ({some(changed) or 'its index'}): delete "
            f"{display_path(options, place)}, and it is made again"
        )


def _fetch_commit(card: Card, origin: Origin, part: Path) -> None:
    """Makes a repository at `part` and checks the commit out."""
    part.mkdir(parents=True)
    log = part.with_suffix(".log")
    log.unlink(missing_ok=True)
    setup = git(part, "init", "--quiet", "--template=")
    if setup.returncode:
        raise UserError(f"git could not make a repository in the cache: {last_message(setup.stderr, part)}")
    try:
        if origin.kind == "address":
            _probe(card, origin)
        if origin.kind == "bundle":
            ways: list[tuple[str, ...]] = [("bundle", "unbundle", origin.place)]
        else:
            every = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
            fetch = (*GIVE_UP_ON_STALL, "fetch", "--no-auto-gc", "--progress")
            ways = [(*fetch, "--depth", "1", "--no-tags", origin.place, card.commit), (*fetch, origin.place, *every)]
        for way in ways:  # some servers do not send a single commit
            ending = run_tool(
                [git_program(), *way], title=f"{card.display}: repository", log=log, cwd=part, env=variables()
            )
            if ending.exit_code == 0 and _has(part, card.commit):
                break
        else:
            require_success(ending, log, f"{card.display}: {origin.shown} could not be read", REPO_DIR_HINT)
            raise UserError(f"{origin.shown} does not contain the commit {card.commit} of {card.display}")
        git(part, "config", "core.autocrlf", "false")
        done = git(part, "checkout", "--quiet", "--detach", card.commit)
        if done.returncode:
            raise UserError(
                f"{origin.shown}: {card.commit[:12]} cannot be checked out: {last_message(done.stderr, part)}"
            )
    except UserError as error:
        raise UserError(without_paths(str(error), {Path(origin.place): origin.shown})) from None
    finally:
        log.unlink(missing_ok=True)


def _probe(card: Card, origin: Origin) -> None:
    """Raises UserError within seconds where the address cannot be reached."""
    done = git(Path.home(), "ls-remote", "--quiet", origin.place, "HEAD", limit=PROBE_SECONDS)
    if done.returncode:
        why = last_message(done.stderr, Path.home())
        raise UserError(f"{card.display}: {origin.shown} cannot be reached ({why}); without network, {REPO_DIR_HINT}")


def _patch(card: Card, part: Path) -> None:
    """Applies the patches in their order and puts the result into the index."""
    for patch in card.patches:
        path = part / patch.file
        if not path.resolve().is_relative_to(part.resolve()) or not path.is_file():
            raise UserError(f"a patch of {card.display} is for {patch.file}, and there is no such file at that commit")
        content, count = apply_patch(path.read_bytes(), patch)
        if count != 1:
            raise UserError(
                f"a patch of {card.display} does not apply: what it looks for stands {count} times in {patch.file}, "
                f"expected once ({patch.reason})"
            )
        path.write_bytes(content)
    git(part, "add", "--update")


def apply_patch(content: bytes, patch: Patch) -> tuple[bytes, int]:
    """Applies a patch to a file's content, if the text that it looks for occurs there exactly once.

    In a file with Windows line ends, the patch gets Windows line ends too.

    Returns:
        The content, and how often the text occurred in it.
    """
    find, replace = patch.find.encode(), patch.replace.encode()
    if b"\r\n" in content and find not in content:
        find, replace = (text.replace(b"\n", b"\r\n") for text in (find, replace))
    count = content.count(find) if find else 0
    return (content.replace(find, replace) if count == 1 else content), count


def link(card: Card, options: "RunOptions", place: Path) -> None:
    """Puts the card's links to files of the weight store into the checkout.

    Several processes may do so at once: a link is replaced in one step.

    Raises:
        UserError: the repository itself has something in the place of a link.
    """
    assert card.command is not None
    for where, weight in card.command.links.items():
        path, target = place / where, (options.weights() / weight).absolute()
        if path.is_symlink() and Path(os.readlink(path)) == target:
            continue
        if path.exists() and not path.is_symlink():
            raise UserError(f"{card.display}: the card links {where} to a weight, but the repository has a {where}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.unlink(missing_ok=True)
        part.symlink_to(target)
        os.replace(part, path)


def _has(repository: Path, commit: str) -> bool:
    return git(repository, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0
