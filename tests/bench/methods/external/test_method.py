"""A script with the habits of real ones through the whole mechanism: git, uv, process, files."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import PIL
import psutil
import pytest
from PIL import Image

from bench.methods.base import FolderRunner
from bench.methods.external import environment, repository
from bench.methods.external.attempt import attempts
from bench.methods.external.method import ExternalMethod, external_spec
from bench.options import RunOptions
from bench.provenance import image_seed
from bench.store.missing import Obstacle
from tsd.errors import UserError

pytestmark = pytest.mark.usefixtures("built")
Images = dict[str, Path]


def load(card, options: RunOptions) -> ExternalMethod:
    method = external_spec(card).load(options)
    assert isinstance(method, ExternalMethod)
    assert isinstance(method, FolderRunner)
    return method


def restore(method: ExternalMethod, images: Images, work: Path, seed: int = 42) -> dict[str, bytes | str]:
    """What is yielded, files as their bytes; checks that every name comes once and nothing but logs remains."""
    seeds = {name: image_seed(seed, name) for name in images}
    found: dict[str, bytes | str] = {}
    work.mkdir(parents=True, exist_ok=True)
    for name, output in method.restore_folder(images, seeds, work):
        assert name not in found
        found[name] = output.read_bytes() if isinstance(output, Path) else output
    assert set(found) == set(images)
    assert not [path for path in work.iterdir() if path.suffix != ".log"]
    return found


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_odd_names_in_a_subfolder_come_back_by_image(make_card, options, make_images, tmp_path) -> None:
    images = make_images("a", "a_b", "a_b_SR-0", "photo 1", "x[1]")
    method = load(make_card(), options)
    work = tmp_path / "work"
    seen = {}
    for name, output in method.restore_folder(images, dict.fromkeys(images, 1), work):
        assert isinstance(output, Path), output
        seen[name] = output.name
        assert size_of(output) == (80, 64)
    assert seen == {name: f"{name}_SR-0.png" for name in images}
    assert "Pillow 10.4.0" in (work / "attempt-1.log").read_text()


def test_it_ran_in_its_own_environment(make_card, options, make_images, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    card = make_card(command='variables = {PYTHONPATH = "."}')
    images = make_images("a")
    method = load(card, replace(options, seed=2**40 + 5))
    notes = {}
    for _, output in method.restore_folder(images, {"a": 1}, tmp_path / "work"):
        assert isinstance(output, Path)
        lines = (output.parents[1] / "settings.txt").read_text().splitlines()
        notes = dict(line.split(" ", 1) for line in lines)
    assert notes["pillow"] == "10.4.0" != PIL.__version__
    assert Path(notes["prefix"]) == environment.environment_path(card, options)
    assert notes["seed"] == "5"
    assert notes["cuda"] == "''"
    assert notes["rank"] == "None"
    described = method.environment()
    assert described["packages"] == {"pillow": "10.4.0"}
    assert described["python"] == notes["python"]
    assert str(options.cache()) not in json.dumps(described)


def test_every_fault_is_told_apart_and_costs_its_image_alone(make_card, options, make_images, tmp_path) -> None:
    names = ("alpha_1", "more_1", "ok_1", "ok_2", "skip_1", "small_1", "torn_1", "twice_1")
    work = tmp_path / "out" / "images" / ".work" / "mini" / "tiny"
    found = restore(load(make_card(), options), make_images(*names), work)
    log = "log: images/.work/mini/tiny/attempt-1.log"
    assert {name for name, result in found.items() if isinstance(result, bytes)} == {"more_1", "ok_1", "ok_2"}
    assert found["skip_1"] == (
        "partial result: no output for this image, though the process ended with exit code 0 "
        f"({log}): could not restore skip_1.png : some error"
    )
    assert found["small_1"] == f"wrong size: results/small_1_SR-0.png is 40x32, expected 80x64 ({log})"
    assert found["alpha_1"] == f"wrong format: results/alpha_1_SR-0.png is RGBA, expected 8-bit RGB ({log})"
    assert str(found["torn_1"]).startswith("unreadable: results/torn_1_SR-0.png is no whole image (")
    assert (
        found["twice_1"] == f"twice: results/twice_1_SR-0.png and results/twice_1_SR-1.png; expected one file ({log})"
    )
    text = (work / "attempt-1.log").read_text()
    assert "[bench] files that belong to no image: grid.png" in text
    assert "settings.txt" not in text.split("belong to no image")[1]


def test_a_crash_costs_what_was_not_made_before_it(make_card, options, make_images, tmp_path) -> None:
    images = make_images("a", "b", "c")
    found = restore(load(make_card(mode="crash"), options), images, tmp_path / "tiny")
    assert isinstance(found["a"], bytes)
    for name in "bc":
        assert found[name] == (
            "no output, crashed: the process ended with exit code 1 (log: tiny/attempt-1.log): "
            "RuntimeError: out of memory in attempt-1/lr/b.png"
        )
    again = restore(load(make_card(mode="crash"), options), {"c": images["c"]}, tmp_path / "tiny")
    assert isinstance(again["c"], bytes)
    assert (tmp_path / "tiny" / "attempt-2.log").exists()
    assert "out of memory" in (tmp_path / "tiny" / "attempt-1.log").read_text()


def test_exit_code_0_proves_nothing(make_card, options, make_images, tmp_path) -> None:
    found = restore(load(make_card(mode="swallow"), options), make_images("a", "b"), tmp_path / "tiny")
    assert isinstance(found["a"], bytes)
    assert found["b"] == (
        "partial result: no output for this image, though the process ended with exit code 0 "
        "(log: tiny/attempt-1.log): Error: out of memory in attempt-1/lr/b.png"
    )


def test_a_nonzero_exit_after_the_last_image_is_a_remark(make_card, options, make_images, tmp_path, capsys) -> None:
    found = restore(load(make_card(mode="late"), options), make_images("a", "b"), tmp_path / "tiny")
    assert all(isinstance(result, bytes) for result in found.values())
    assert "every image is complete, so the run counts as a success" in (tmp_path / "tiny/attempt-1.log").read_text()
    assert "Tiny: crashed: the process ended with exit code 3; log: tiny/attempt-1.log" in capsys.readouterr().err


def test_a_hung_process_is_stopped_with_its_children(make_card, options, make_images, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HANG_PIDS", str(tmp_path / "pids"))
    method = load(make_card(mode="hang"), replace(options, time_limit_seconds=3.0))
    found = restore(method, make_images("a", "b"), tmp_path / "tiny")
    assert isinstance(found["a"], bytes)
    assert str(found["b"]).startswith(
        "no output, timed out: the process was stopped after 3 s, its time limit (log: tiny/attempt-1.log)"
    )
    assert gone(tmp_path / "pids")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_outlives_the_harness(make_card, options, make_images, tmp_path, number, monkeypatch) -> None:
    images = make_images("a", "b", "c")
    make_card(mode="hang")
    arguments = [
        tmp_path / "cards/tiny.toml",
        options.cache(),
        options.weights(),
        tmp_path / "inputs",
        tmp_path / "work",
    ]
    monkeypatch.setenv("HANG_PIDS", str(tmp_path / "pids"))
    harness = subprocess.Popen([sys.executable, "-c", HARNESS, *map(str, arguments)], cwd=tmp_path)
    wait_for((tmp_path / "pids").exists)
    harness.send_signal(number)
    harness.wait(20)
    assert gone(tmp_path / "pids")
    # The same command continues: what was made is kept, and only the rest runs.
    [earlier] = attempts(tmp_path / "work")
    before = (earlier.sr / "results/a_SR-0.png").read_bytes()
    method = load(make_card(mode="hang"), replace(options, time_limit_seconds=2.0))
    found = restore(method, images, tmp_path / "work")
    assert found["a"] == before
    assert isinstance(found["b"], bytes)
    assert "timed out" in str(found["c"])
    assert "Tiny, 2 images" in (tmp_path / "work/attempt-2.log").read_text()


HARNESS = """
import signal
import sys
from dataclasses import replace
from pathlib import Path
from bench.cards.card import read_card
from bench.options import RunOptions
from bench.methods.external.method import external_spec

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
card, cache, weights, inputs, work = map(Path, sys.argv[1:])
method = external_spec(read_card(card)).load(RunOptions(cache_root=cache, weights_root=weights))
images = {path.stem: path for path in sorted(inputs.iterdir())}
list(method.restore_folder(images, {name: 1 for name in images}, work))
"""


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)


def gone(pids: Path) -> bool:
    """Whether the script, its child and its orphan have all ended, or do so shortly."""
    numbers = [int(text) for text in pids.read_text().split()]
    assert len(numbers) == 3
    wait_for(lambda: not any(psutil.pid_exists(number) for number in numbers), seconds=10)
    return True


def test_outputs_of_other_settings_are_not_taken_up(make_card, options, make_images, tmp_path) -> None:
    images = make_images("a", "b")
    seeds = {name: image_seed(1, name) for name in images}
    first = load(make_card(seeding="image"), options).restore_folder(images, seeds, tmp_path / "work")
    next(first)
    first.close()  # as when the harness is interrupted: the folder stays
    assert len(attempts(tmp_path / "work")) == 1
    other = load(make_card(seeding="image"), options)
    found = restore(other, images, tmp_path / "work", seed=2)
    assert "Tiny, 2 images" in (tmp_path / "work/attempt-2.log").read_text()
    assert found == restore(other, images, tmp_path / "elsewhere", seed=2)


def test_what_is_taken_up_is_told_apart_from_the_outputs_of_images_that_are_done(
    make_card, options, make_images, tmp_path
) -> None:
    method = load(make_card(seeding="image"), options)
    images = make_images("a", "a_SR-0")
    seeds = {name: image_seed(42, name) for name in images}
    first = method.restore_folder(images, seeds, tmp_path / "work")
    next(first)
    first.close()
    [attempt] = attempts(tmp_path / "work")
    (attempt.sr / "results/a_SR-0.png").unlink()  # of "a"; "a_SR-0_SR-0.png" would pass for it, were it alone
    alone = {"a": images["a"]}
    assert restore(method, alone, tmp_path / "work") == restore(method, alone, tmp_path / "elsewhere")


def test_seeds_reach_the_script_by_image_and_nothing_else_matters(make_card, options, make_images, tmp_path) -> None:
    images = make_images("a", "b", "c", "d")
    method = load(make_card(seeding="image"), options)
    assert method.seeded()
    everything = restore(method, images, tmp_path / "all")
    backwards = restore(method, dict(reversed(images.items())), tmp_path / "backwards")
    one = restore(method, {"c": images["c"]}, tmp_path / "one")
    other = restore(method, images, tmp_path / "other", seed=7)
    assert everything == backwards
    assert one["c"] == everything["c"]
    assert all(other[name] != everything[name] for name in images)
    unseeded = load(make_card(), options)
    assert not unseeded.seeded()
    assert unseeded.provenance()["remarks"] == ["unseeded"]
    alone = restore(unseeded, {"c": images["c"]}, tmp_path / "unseeded1")
    assert alone["c"] != restore(unseeded, images, tmp_path / "unseeded")["c"]  # which is why they are called so


def test_an_input_of_another_size_is_refused_before_anything_runs(make_card, options, make_images, tmp_path) -> None:
    card = make_card(command="lr_size = [128, 128]")
    found = restore(load(card, options), make_images("a"), tmp_path / "work")
    assert found["a"] == "Tiny handles inputs of 128x128 only; this one is 20x16"
    assert not list((tmp_path / "work").iterdir())
    lines = [item.line() for item in external_spec(card).missing(replace(options, testset="mini"))]
    assert lines == ["Tiny handles inputs of 128x128 only; those of mini are 64x64"]
    assert external_spec(card).missing(replace(options, testset="realsr")) == []


def test_inputs_enlarged_beforehand(make_card, options, make_images, tmp_path) -> None:
    card = make_card(command='upscale = "bicubic"')
    found = restore(load(card, options), make_images("a"), tmp_path / "tiny")
    assert found["a"] == (
        "wrong size: results/a_SR-0.png is 320x256, expected 80x64 (log: tiny/attempt-1.log)"
    )  # the script enlarges too


def test_provenance_says_what_was_run_and_no_path(make_card, options) -> None:
    method = load(make_card(seeding="image", repository="https://example.org/Tiny"), options)
    account = method.provenance()
    text = json.dumps(account)
    assert account["repository"] == "https://example.org/Tiny"
    assert account["commit"] == method.card.commit
    assert account["requirements"] == ["pillow==10.4.0"]
    assert account["command"][:3] == ["run.py", "-i", "{lr}"]  # pyright: ignore[reportIndexIssue]
    assert account["seeding"] == "image"
    assert account["remarks"] == []
    assert list(account["weights"]) == ["tiny.bin"]  # pyright: ignore[reportArgumentType]
    [patch] = account["patches"]  # pyright: ignore[reportGeneralTypeIssues]
    assert len(patch["sha256"]) == 64
    assert account["patch_reasons"] == ["the script seeds once for all images"]
    assert str(options.cache()) not in text
    assert str(options.weights()) not in text


def test_a_missing_weight_and_a_wrong_one(make_card, options) -> None:
    spec = external_spec(make_card())
    assert spec.missing(options) == []
    (options.weights() / "tiny.bin").write_bytes(b"others")
    with pytest.raises(UserError, match=r"tiny\.bin: sha256 .* expected"):
        spec.load(options)
    (options.weights() / "tiny.bin").unlink()
    assert [item.name for item in spec.missing(options)] == ["tiny.bin"]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match=r"Tiny needs tiny\.bin"):
        spec.load(options)


def test_what_keeps_it_from_running_is_said_before_anything_is_made(make_card, options, tmp_path, monkeypatch) -> None:
    fresh = replace(options, cache_root=tmp_path / "fresh")
    spec = external_spec(replace_cuda(make_card()))
    [gpu] = spec.missing(fresh)
    assert gpu.line() == (
        "Tiny needs an NVIDIA GPU, and the device is cpu; run it on a machine with one, --device cuda"
    )
    with pytest.raises(UserError, match="Tiny needs an NVIDIA GPU"):
        spec.load(fresh)
    card = make_card()
    (tmp_path / "empty").mkdir()
    [clone] = external_spec(card).missing(replace(fresh, repo_dir=tmp_path / "empty"))
    assert isinstance(clone, Obstacle)
    assert "expected a clone Tiny/ or Tiny.git/, or a bundle Tiny.bundle" in clone.line()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(environment, "uv_program", lambda: None)
    lines = [item.line() for item in external_spec(card).missing(fresh)]
    assert lines[0] == "Tiny needs uv, which builds its environment: `pip install uv`"
    assert lines[1].startswith("Tiny needs its repository: git is not installed here")
    assert not (tmp_path / "fresh").exists()


def replace_cuda(card):
    return replace(card, command=replace(card.command, cuda=True))


def test_a_changed_checkout_is_not_run(make_card, options, make_images, tmp_path, cache) -> None:
    card = make_card(name="changed")
    restore(load(card, options), make_images("a"), tmp_path / "work")
    place = repository.checkout_path(card, options)
    (place / "naming.py").write_text("")
    with pytest.raises(UserError, match=r"checkout of Tiny was changed .*naming\.py.*delete .*/changed-"):
        load(card, options)
