"""Several processes give what one gives, also after a kill; and none waits for one that is gone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.ranks import (
    ALONE,
    Rank,
    StoppedError,
    all_gather,
    barrier,
    check_shared,
    current_rank,
    from_first,
    on_all_ranks,
    wait_until_visible,
)
from bench.records.records import Records
from tsd.errors import UserError

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
NAMES = [f"photo{index}" for index in range(5)]


# -- one process -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_the_shares_are_the_images_each_once_and_even(world: int, count: int) -> None:
    images = list(range(count))
    shares = [Rank(rank, world).share(images) for rank in range(world)]
    assert sorted(image for share in shares for image in share) == images
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert shares[0] == images[::world]


def launcher(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_the_launchers_variables_say_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher(monkeypatch)
    assert current_rank() == ALONE == Rank(0, 1, 0)
    launcher(monkeypatch, WORLD_SIZE="1", RANK="0", LOCAL_RANK="0")
    assert current_rank() == ALONE
    launcher(monkeypatch, WORLD_SIZE="16", RANK="9", LOCAL_RANK="1")
    assert current_rank() == Rank(9, 16, 1)
    assert not current_rank().first
    launcher(monkeypatch, WORLD_SIZE="16")
    with pytest.raises(UserError, match="RANK='', WORLD_SIZE='16', LOCAL_RANK=''"):
        current_rank()


def test_alone_nothing_is_exchanged_and_nothing_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from bench.ranks import *\n"
        "assert all_gather(ALONE, 1) == [1] and from_first(ALONE, lambda: 2) == 2; barrier(ALONE)\n"
        "with on_all_ranks() as rank: assert rank == ALONE\n"
        "assert not {'torch', 'accelerate'} & set(sys.modules)"
    )
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "WORLD_SIZE"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    check_shared(ALONE, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert all_gather(ALONE, "x") == ["x"]
    assert from_first(ALONE, lambda: "y") == "y"
    barrier(ALONE)


def test_something_that_shows_up_late_is_waited_for() -> None:
    answers = iter([False, False, True])
    assert wait_until_visible(lambda: next(answers), 60)
    assert not wait_until_visible(lambda: False, 0)


def test_errors_and_interrupts_pass_through_where_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher(monkeypatch)
    for error in (UserError("x"), StoppedError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), on_all_ranks():
            raise error
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), on_all_ranks():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


# -- several, forked by rank_scenarios.py -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenarios(datasets_of_five: Path, tmp_path_factory: pytest.TempPathFactory, warm: Any) -> Path:
    root = tmp_path_factory.mktemp("scenarios")
    names = ["equal", "killed", "failing", "refused", "uneven", "runner", "loading"]
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("WORLD_SIZE", "TSD_DATA")}
    program = Path(__file__).with_name("rank_scenarios.py")
    environment |= {"TORCH_HOME": str(root)}
    done = warm.run(program, datasets_of_five, *names, cwd=root, env=environment, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def codes(path: Path) -> list[int]:
    return json.loads(path.with_name(f"{path.name}.json").read_text())


def printed(path: Path, rank: int) -> str:
    return path.with_name(f"{path.name}.{rank}.txt").read_text()


def content(out: Path) -> dict[str, object]:
    """Every file of records and the table, byte for byte, but seconds."""
    found: dict[str, object] = {}
    for path in sorted([*(out / "records").rglob("*"), *(out / "images" / "mini").rglob("*.png"), *out.glob("*.*")]):
        if path.name == "images.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[str(path.relative_to(out))] = [json.dumps(row | {"seconds": row["error"]}) for row in rows]
        elif path.is_file():
            found[str(path.relative_to(out))] = path.read_bytes()
    return found


@pytest.mark.slow
def test_several_processes_leave_what_one_leaves(scenarios: Path) -> None:
    one = scenarios / "equal" / "of1"
    assert len(content(one)) == 2 * (4 + 5) + 1 + 4
    for world in (2, 3):
        out = scenarios / "equal" / f"of{world}"
        assert codes(out) == [0] * world
        assert content(out) == content(one)
        assert printed(out, 0).count("# Table 1") == 1
        others = "".join(printed(out, rank) for rank in range(1, world))
        assert "Table 1" not in others
        assert f"process 1 of {world}: restore mini · bicubic: 2 images" in others
        assert f"process 1 of {world}: restore mini · bicubic: 2 restored, 0 failed" in others
        assert f"process 1 of {world}: psnr on mini: done with 10 values" in others
        assert not [path for path in out.rglob("*") if ".rank" in path.name or ".tmp" in path.name]


@pytest.mark.slow
def test_a_killed_run_is_taken_up_by_any_number_of_processes(scenarios: Path) -> None:
    whole = content(scenarios / "equal" / "of1")
    runs = sorted((scenarios / "killed").glob("*-killed.json"))
    assert len(runs) >= 6
    kept = 0
    for path in runs:
        label = path.name.removesuffix("-killed.json")
        victim = int(label[-1])
        statuses = json.loads(path.read_text())
        assert statuses[victim] == -9
        assert statuses[1 - victim] == 2, "the other ends by itself"
        assert set(codes(path.with_name(f"{label}-again"))) == {0}
        out = path.with_name(label)
        assert content(out) == whole
        assert not [path for path in out.rglob("*") if ".rank" in path.name or ".tmp" in path.name]
        for method in ("bicubic", "lanczos"):
            before = seconds(path.with_name(f"{label}-records-then") / "mini" / method)
            after = seconds(out / "records" / "mini" / method)
            assert before.items() <= after.items(), "what was restored before the kill was not restored again"
            kept += len(before)
    assert kept > 20


def seconds(folder: Path) -> dict[str, float]:
    """By image, from all whole rows of the processes that wrote to `folder`."""
    lines = [line for path in folder.glob("images*.jsonl") for line in path.read_text().split("\n")[:-1]]
    return {row["name"]: row["seconds"] for row in map(json.loads, lines)}


@pytest.mark.slow
def test_what_fails_in_one_process_is_the_status_of_all_and_the_same_rows(scenarios: Path) -> None:
    one, two = scenarios / "failing" / "of1", scenarios / "failing" / "of2"
    assert (codes(one), codes(two)) == ([1], [1, 1])
    assert content(two) == content(one)
    line = "failed: own on mini: 1 images, first photo1: RuntimeError: not this"
    assert printed(two, 0).count(line) == printed(one, 0).count(line) == 1
    assert line not in printed(two, 1)


@pytest.mark.slow
def test_bad_input_is_said_once_and_ends_all(scenarios: Path) -> None:
    said = {
        "typo": "bench run: no method is called 'bicubi'",
        "gpus": "bench run: --device cuda:0 with 2 processes: each takes a GPU of its own",
        "seed": "choose another --out for another table",
    }
    for label, message in said.items():
        path = scenarios / "refused" / label
        assert set(codes(path)) == {2}
        assert message in printed(path, 0)
        assert all(printed(path, rank) == "" for rank in range(1, len(codes(path))))
        assert not path.exists()


@pytest.mark.slow
def test_redo_moves_records_aside_once(scenarios: Path) -> None:
    path = scenarios / "refused" / "redone"
    assert codes(path) == [0, 0]
    assert "old records moved to redo/superseded/mini/lanczos.1" in printed(path, 0)
    assert [found.name for found in (scenarios / "refused" / "redo" / "superseded" / "mini").iterdir()] == ["lanczos.1"]
    assert content(scenarios / "refused" / "redo").items() >= content(scenarios / "equal" / "of1").items()


@pytest.mark.slow
def test_processes_that_do_not_share_the_folder_are_told_before_anything_runs(scenarios: Path) -> None:
    path = scenarios / "refused" / "apart"
    assert codes(path) == [2, 2]
    assert "process 1 of 2: apart1/images is not the folder of process 0" in printed(path, 1)
    assert "bench run: process 1 of 2 stopped: process 1 of 2: apart1/images is not" in printed(path, 0)
    assert not list((scenarios / "refused").glob("apart*/records"))


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others(scenarios: Path) -> None:
    path = scenarios / "refused" / "broken"
    assert codes(path) == [2, 70]
    assert "ArithmeticError: a bug" in printed(path, 1)
    assert "bench run: process 1 of 2 stopped: ArithmeticError: a bug of rank 1" in printed(path, 0)


@pytest.mark.slow
def test_what_is_missing_on_one_machine_costs_its_row_for_all(scenarios: Path) -> None:
    path = scenarios / "uneven" / "weighed"
    assert codes(path) == [0, 0]
    assert "left out: Real-ESRGAN (compact) needs realesr-general-x4v3.pth" in printed(path, 0)
    assert not (path / "records" / "mini" / "realesrgan-compact").exists()
    assert len(Records(path).of("mini", "bicubic").scores("psnr")) == 5


@pytest.mark.slow
def test_a_test_set_with_another_image_on_another_machine_is_refused(scenarios: Path) -> None:
    path = scenarios / "uneven" / "sets"
    assert codes(path) == [2, 2]
    assert "bench run: the images of mini are not the same in process 1 as in process 0" in printed(path, 0)
    assert not path.exists()


@pytest.mark.slow
def test_a_folder_runner_gets_the_share_and_a_work_folder_of_its_process(scenarios: Path) -> None:
    one, two = scenarios / "runner" / "of1", scenarios / "runner" / "of2"
    assert (codes(one), codes(two)) == ([0], [0, 0])
    assert content(two) == content(one)
    for rank in (0, 1):
        assert printed(two, rank).splitlines()[-1] == "[0, 5, {}]", "the report over all shares"
    work = two / "images" / ".work" / "mini"
    shares = {folder.name: sorted(path.stem for path in (folder / "in").iterdir()) for folder in work.iterdir()}
    assert shares == {"own": NAMES[0::2], "own.rank1": NAMES[1::2]}
    (environment,) = Records(two).of("mini", "own").run().environments.values()  # type: ignore[union-attr]
    assert environment["external"] == {"python": "3.8"}


@pytest.mark.slow
def test_a_process_in_which_the_method_does_not_load_fails_on_its_share_alone(scenarios: Path) -> None:
    path = scenarios / "loading" / "partly"
    assert codes(path) == [1, 1]
    reason = "could not be loaded: no weights on this machine"
    assert json.loads(printed(path, 0).splitlines()[-1]) == [0, 3, {"photo1": reason, "photo3": reason}]
    assert codes(path.with_name("mended")) == [0, 0]
    assert json.loads(printed(path.with_name("mended"), 0).splitlines()[-1]) == [3, 2, {}]
    assert codes(path.with_name("cloned")) == [1, 1]
    assert json.loads(printed(path.with_name("cloned"), 0).splitlines()[-1])[:2] == [0, 3]
    rows = Records(path).of("mini", "own").images()
    assert list(rows) == NAMES
    assert {row.error for row in rows.values()} == {None}


@pytest.mark.slow
def test_a_method_of_other_weights_on_another_machine_is_refused(scenarios: Path) -> None:
    path = scenarios / "loading" / "differs"
    assert 0 not in codes(path)
    output = printed(path, 0)
    assert "own is not the same in every process of this run" in output
    assert "weights.net.pth: process 0 has '0a', process 1 '1a'" in output
    assert not path.exists()


# -- accelerate's own launcher -----------------------------------------------------------------------------------------


DIES_ONCE = """
import os, signal, time
from pathlib import Path

def once(name):
    first = not Path(name).exists()
    Path(name).touch()
    return first

def restore(lr, seed):
    if os.environ.get("RANK") == "1" and once("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("RANK") == "0" and once("slept"):
        time.sleep(1000)
    return lr.repeat_interleave(4, 2).repeat_interleave(4, 3)
"""


@pytest.mark.slow
def test_accelerate_launches_a_run_and_ends_it_when_a_process_dies(tmp_path: Path, warm: Any) -> None:
    """On the repository's own mini set; without scores, whose library takes longer to import than all of this."""
    (tmp_path / "dies.py").write_text(DIES_ONCE)
    verb = "restore --methods bicubic lanczos own=python:dies.py:restore --limit 3 --device cpu --out"
    launcher = "launch --multi_gpu --num_processes 2 --main_process_port 0"
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "WORLD_SIZE"}

    def launched() -> subprocess.CompletedProcess[str]:
        call = [BIN / "accelerate", *launcher.split(), BIN / "bench", *verb.split(), "two"]
        return subprocess.run(
            [str(part) for part in call], cwd=tmp_path, capture_output=True, text=True, timeout=900, env=environment
        )

    dead = launched()  # the first process would sleep for longer than that
    assert dead.returncode != 0
    assert "bench restore: interrupted; the same command continues where it stopped" in dead.stderr
    assert dead.stdout == ""
    two = launched()
    assert two.returncode == 0, two.stderr[-3000:]
    assert "process 1 of 2: restore mini · own: 1 restored, 0 failed" in two.stderr
    assert "restore mini · bicubic" not in two.stderr, "that was done before the kill"
    one = warm.run("bench", *verb.split(), "one", cwd=tmp_path, env=environment)
    assert one.returncode == 0, one.stderr[-3000:]
    assert (two.stdout.count("own on mini: "), one.stdout.count("own on mini: 3 restored")) == (1, 1)
    assert content(tmp_path / "two") == content(tmp_path / "one")
