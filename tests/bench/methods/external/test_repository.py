"""The checkout: from an address, a clone, a bundle; and every state that would not run what the card says."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.methods.external import repository
from bench.methods.external.repository import checkout, checkout_path, find_origin, patches_sha256
from tsd.errors import UserError


def git(place: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def own(options, tmp_path):
    """Options with a cache of the test's own."""
    return replace(options, cache_root=tmp_path / "cache")


def assert_nothing_left(own) -> None:
    folder = own.cache() / "repositories"
    assert [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] == []


def test_the_pinned_commit_is_run_not_the_branch(make_card, own) -> None:
    card = make_card()
    place = checkout(card, own)
    assert place == own.cache() / "repositories" / f"tiny-{card.commit[:12]}"
    assert "* 4" in (place / "run.py").read_text()
    assert git(place, "rev-parse", "HEAD") == card.commit
    assert git(place, "rev-list", "--count", "HEAD") == "1", "only the commit is taken"
    before = (place / "run.py").stat().st_mtime_ns
    assert checkout(card, own) == place
    assert (place / "run.py").stat().st_mtime_ns == before


@pytest.mark.parametrize("form", ["Tiny", "Tiny.git", "Tiny.bundle", "tiny.bundle", "."])
def test_air_gapped_from_every_form(make_card, official, own, tmp_path, form) -> None:
    source, commit = official
    folder = tmp_path / "clones"
    folder.mkdir()
    if form == "Tiny":
        git(folder, "clone", "--quiet", str(source), form)
        git(folder / form, "checkout", "--quiet", commit)
    elif form.endswith(".bundle"):
        git(source, "bundle", "create", "--quiet", str(folder / form), "--all")
    else:
        git(folder, "clone", "--quiet", "--bare", str(source), form)
    card = make_card(repository="https://unreachable.invalid/authors/Tiny.git")
    place = checkout(card, replace(own, repo_dir=folder))
    assert "* 4" in (place / "run.py").read_text()


def test_a_repo_dir_without_the_repository(make_card, own, tmp_path) -> None:
    (tmp_path / "clones").mkdir()
    with pytest.raises(UserError, match=r"no repository of Tiny; expected a clone Tiny/ .* bundle Tiny\.bundle"):
        checkout(make_card(), replace(own, repo_dir=tmp_path / "clones"))
    assert_nothing_left(own)


def test_a_clone_at_another_commit_would_not_be_run(make_card, official, own, tmp_path) -> None:
    git(tmp_path, "clone", "--quiet", str(official[0]), "Tiny")
    head = git(tmp_path / "Tiny", "rev-parse", "HEAD")
    card = make_card()
    with pytest.raises(UserError, match=rf"is at commit {head[:12]}, expected {card.commit[:12]}.*git checkout"):
        checkout(card, replace(own, repo_dir=tmp_path))
    assert_nothing_left(own)
    checkout(card, own)  # nor when the right one is in the cache: the user means the clone
    with pytest.raises(UserError, match="is at commit"):
        checkout(card, replace(own, repo_dir=tmp_path))


def test_local_changes_would_not_be_run(make_card, official, own, tmp_path) -> None:
    clone = tmp_path / "Tiny"
    git(tmp_path, "clone", "--quiet", str(official[0]), "Tiny")
    git(clone, "checkout", "--quiet", official[1])
    (clone / "notes.txt").write_text("untracked files do no harm")
    repository.check(make_card(), replace(own, repo_dir=tmp_path))
    (clone / "naming.py").write_text("changed")
    with pytest.raises(UserError, match=r"has local changes \(naming\.py\), which would not be run"):
        checkout(make_card(), replace(own, repo_dir=tmp_path))
    assert_nothing_left(own)


@pytest.mark.parametrize("form", ["clone", "bundle", "address"])
def test_a_commit_that_is_not_there(make_card, official, own, tmp_path, form) -> None:
    card = make_card(commit="0123456789abcdef0123456789abcdef01234567")
    if form == "clone":
        git(tmp_path, "clone", "--quiet", "--bare", str(official[0]), "Tiny.git")
    elif form == "bundle":
        git(official[0], "bundle", "create", "--quiet", str(tmp_path / "Tiny.bundle"), "--all")
    with pytest.raises(UserError, match="does not contain the commit 0123456789abcdef"):
        checkout(card, own if form == "address" else replace(own, repo_dir=tmp_path))
    assert_nothing_left(own)


def test_no_network_is_said_within_seconds(make_card, own, monkeypatch) -> None:
    monkeypatch.setattr(repository, "PROBE_SECONDS", 2.0)
    start = time.monotonic()
    for address in ("https://unreachable.invalid/authors/Tiny", "https://127.0.0.1:9/authors/Tiny"):
        with pytest.raises(UserError, match=r"cannot be reached \(.+\); without network, .*--repo-dir"):
            checkout(make_card(repository=address), own)
    assert time.monotonic() - start < 10
    assert_nothing_left(own)


def test_damaged_repositories_say_so_and_leave_nothing(make_card, official, own, tmp_path) -> None:
    git(official[0], "bundle", "create", "--quiet", str(tmp_path / "whole"), "--all")
    (tmp_path / "Tiny.bundle").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"Tiny\.bundle in --repo-dir could not be read") as caught:
        checkout(make_card(), replace(own, repo_dir=tmp_path))
    assert str(tmp_path) not in str(caught.value)
    (tmp_path / "Tiny.bundle").unlink()
    git(tmp_path, "clone", "--quiet", "--bare", str(official[0]), "Tiny.git")
    for kept in (tmp_path / "Tiny.git/objects").rglob("*"):
        if kept.is_file() and kept.suffix in (".pack", ".idx", ""):
            kept.unlink()
    with pytest.raises(UserError, match=r"Tiny\.git in --repo-dir"):
        checkout(make_card(), replace(own, repo_dir=tmp_path))
    assert_nothing_left(own)


PATCH = """
[[patches]]
file = {file!r}
find = {find!r}
replace = {replace!r}
reason = "because"
"""


def test_patches_are_part_of_the_checkout_and_of_its_name(make_card, own) -> None:
    card = make_card(patches=PATCH.format(file="naming.py", find="%s_SR-%d.png", replace="%s_X-%d.png"))
    place = checkout(card, own)
    assert place.name == f"tiny-{card.commit[:12]}-{patches_sha256(card.patches)[:8]}"
    assert "%s_X-%d.png" in (place / "naming.py").read_text()
    assert checkout(make_card(), own) != place
    repository.check(card, own)


@pytest.mark.parametrize(
    ("file", "find", "reason"),
    [
        ("naming.py", "no such text", r"stands 0 times in naming\.py, expected once"),
        ("naming.py", "os.path", r"stands 3 times in naming\.py, expected once"),
        ("other.py", "x", r"is for other\.py, and there is no such file"),
        ("../../victim.py", "x", "does not lie in the checkout"),
    ],
)
def test_a_patch_that_does_not_apply(make_card, own, file, find, reason) -> None:
    (own.cache() / "repositories").mkdir(parents=True)
    victim = own.cache() / "victim.py"
    victim.write_text("x")
    with pytest.raises(UserError, match=reason):
        checkout(make_card(patches=PATCH.format(file=file, find=find, replace="y")), own)
    assert victim.read_text() == "x"
    assert_nothing_left(own)


def test_a_patch_of_several_lines_finds_them_with_other_line_ends(make_card, official, own, tmp_path) -> None:
    clone = tmp_path / "Tiny"
    git(tmp_path, "clone", "--quiet", str(official[0]), "Tiny")
    (clone / "naming.py").write_bytes(b"import os\r\n\r\n\r\nplace = 1\r\n")
    git(clone, "commit", "--quiet", "-a", "-m", "line ends")
    patches = (
        '\n[[patches]]\nfile = "naming.py"\nfind = "\\nplace = 1\\n"\nreplace = "\\nplace = 2\\n"\nreason = "because"\n'
    )
    card = make_card(commit=git(clone, "rev-parse", "HEAD"), patches=patches)
    place = checkout(card, replace(own, repo_dir=tmp_path))
    assert (place / "naming.py").read_bytes() == b"import os\r\n\r\n\r\nplace = 2\r\n"
    repository.check(card, own)


@pytest.mark.parametrize("change", ["file", "staged", "commit"])
def test_a_checkout_that_was_changed(make_card, own, change) -> None:
    card = make_card(patches=PATCH.format(file="naming.py", find="%s_SR-%d.png", replace="%s_X-%d.png"))
    place = checkout(card, own)
    (place / "untracked.txt").write_text("does no harm")
    repository.check(card, own)
    (place / "run.py").write_text("other")
    if change != "file":
        git(place, "add", "run.py")
    if change == "commit":
        git(place, "commit", "--quiet", "-m", "other")
    with pytest.raises(UserError, match=r"was changed since it was made .*delete \$TSD_CACHE/repositories/tiny-"):
        checkout(card, own)
    shutil.rmtree(place)
    assert checkout(card, own) == place


def test_a_hook_of_the_environment_points_git_nowhere_else(make_card, own, official, monkeypatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(official[0] / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(official[0]))
    place = checkout(make_card(), own)
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")
    assert "* 4" in (place / "run.py").read_text()
    assert git(official[0], "status", "--porcelain") == ""


def test_links_lead_to_the_store_and_follow_it(make_card, own, tmp_path) -> None:
    card = make_card()
    place = checkout(card, own)
    for store in ("weights", "moved"):
        options = replace(own, weights_root=tmp_path / store)
        repository.link(card, options, place)
        repository.link(card, options, place)
        assert Path(os.readlink(place / "weights/tiny.bin")) == tmp_path / store / "tiny.bin"
    assert [path.name for path in (place / "weights").iterdir()] == ["tiny.bin"]
    repository.check(card, own)
    inside = replace(card, command=replace(card.command, links={"naming.py": "tiny.bin"}))
    with pytest.raises(UserError, match=r"the repository has a naming\.py"):
        repository.link(inside, own, place)


def test_one_of_several_processes_makes_it(make_card, own, tmp_path) -> None:
    make_card()
    code = """
import sys
from pathlib import Path
from bench.cards.card import read_card
from bench.methods.external.repository import checkout
from bench.options import RunOptions
print(checkout(read_card(Path(sys.argv[1])), RunOptions(cache_root=Path(sys.argv[2]))))
"""
    argv = [sys.executable, "-c", code, str(tmp_path / "cards/tiny.toml"), str(own.cache())]
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=tmp_path) for _ in range(3)]
    said = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert said == {str(checkout_path(make_card(), own))}
    assert all(process.returncode == 0 for process in processes)


def test_what_a_killed_build_left_is_removed(make_card, own) -> None:
    card = make_card()
    place = checkout_path(card, own)
    for leftover in (place, place.with_name(f".{place.name}.part")):
        leftover.mkdir(parents=True)
        (leftover / "half").write_text("")
    assert not repository.is_checked_out(card, own)
    checkout(card, own)
    assert not (place / "half").exists()
    assert not place.with_name(f".{place.name}.part").exists()


def test_the_source_is_found_by_the_repository_s_name_or_the_card_s(make_card, own, tmp_path) -> None:
    card = make_card(repository="https://example.org/authors/Official-Name.git/")
    assert find_origin(card, own).kind == "address"
    git(tmp_path, "init", "--quiet", "--bare", "tiny.git")
    assert find_origin(card, replace(own, repo_dir=tmp_path)).shown == "tiny.git in --repo-dir"
    git(tmp_path, "init", "--quiet", "Official-Name")
    assert find_origin(card, replace(own, repo_dir=tmp_path)).shown == "Official-Name in --repo-dir"
