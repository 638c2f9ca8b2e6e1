"""Environments by their pins: built once, by one process, rebuilt when the pins change, never half."""

import json
import subprocess
import sys
from dataclasses import replace

import PIL
import pytest

from bench.methods.external import environment
from bench.methods.external.environment import build, describe, environment_path, is_built, pins_sha256, python_of
from tsd.errors import UserError


@pytest.fixture
def own(options, tmp_path):
    return replace(options, cache_root=tmp_path / "cache")


def installed_pillow(place) -> str:
    code = "import PIL; print(PIL.__version__)"
    return subprocess.check_output([python_of(place), "-I", "-c", code], text=True).strip()


def test_it_has_the_conflicting_pin_and_the_harness_keeps_its_own(built, make_card, options) -> None:
    assert installed_pillow(built) == "10.4.0" != PIL.__version__
    found = describe(make_card(), options)
    assert found["packages"] == {"pillow": "10.4.0"}
    assert found["requirements"] == ["pillow==10.4.0"]
    assert found["uv"].startswith("uv ")


def test_it_is_built_again_only_when_the_pins_change(built, make_card, options) -> None:
    before = (built / environment.MARKER).stat().st_mtime_ns
    assert build(make_card(), options) == built
    assert build(make_card(name="another-card-with-the-same-pins"), options) == built
    assert (built / environment.MARKER).stat().st_mtime_ns == before
    other = make_card(requirements=("pillow==10.3.0",))
    assert not is_built(other, options)
    place = build(other, options)
    assert place != built
    assert installed_pillow(place) == "10.3.0"
    assert installed_pillow(built) == "10.4.0"


def test_what_is_left_open_is_taken_as_of_the_card_s_date(built, make_card, own) -> None:
    card = make_card(requirements=("pillow<11",), before="2024-03-15")
    assert installed_pillow(build(card, own)) == "10.2.0"
    with pytest.raises(UserError, match="before = 'spring'; expected a day"):
        make_card(before="spring")


def test_python_requirements_and_their_order_are_the_address(make_card) -> None:
    pins = make_card(requirements=("a==1", "b==2")).environment
    others = [
        replace(pins, python="3.8"),
        replace(pins, requirements=("b==2", "a==1")),
        replace(pins, requirements=("a==1", "b==3")),
        replace(pins, before="2024-01-01"),
    ]
    assert len({pins_sha256(each) for each in (pins, *others)}) == 5
    assert pins_sha256(replace(pins, note="of no consequence")) == pins_sha256(pins)


def test_several_processes_build_it_once(built, make_card, own, tmp_path) -> None:
    make_card(requirements=())
    code = """
import sys
from pathlib import Path
from bench.cards.card import read_card
from bench.methods.external.environment import build
from bench.options import RunOptions
print(build(read_card(Path(sys.argv[1])), RunOptions(cache_root=Path(sys.argv[2]))))
"""
    argv = [sys.executable, "-c", code, str(tmp_path / "cards/tiny.toml"), str(own.cache())]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path) for _ in range(3)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert {said.strip() for said, _ in answers} == {str(environment_path(make_card(requirements=()), own))}
    log = next((own.cache() / "environments").glob("*.log")).read_text()
    assert log.count("Creating virtual environment") == 1


def test_a_requirement_that_does_not_exist(built, make_card, own) -> None:
    card = make_card(requirements=("pillow==0.0.999",))
    with pytest.raises(UserError) as caught:
        build(card, own)
    message = str(caught.value)
    assert "the environment of Tiny could not be built: packages: crashed: the process ended with" in message
    assert "pillow==0.0.999" in message
    assert "$TSD_CACHE/environments/" in message
    assert str(own.cache()) not in message
    assert not is_built(card, own)
    folder = own.cache() / "environments"
    assert [path for path in folder.iterdir() if path.is_dir()] == []
    with pytest.raises(UserError, match=r"`bench install card:tiny\.toml`"):
        describe(card, own)


def test_no_such_python(make_card, own, monkeypatch) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    card = make_card()
    card = replace(card, environment=replace(card.environment, python="3.99"))
    with pytest.raises(UserError, match=r"could not be built: Python 3\.99(.|\n)*No interpreter found"):
        build(card, own)


def test_what_a_killed_build_left_is_no_environment(built, make_card, own) -> None:
    card = make_card(requirements=())
    place = environment_path(card, own)
    place.mkdir(parents=True)
    (place / "half").write_text("")
    assert not is_built(card, own)
    build(card, own)
    assert not (place / "half").exists()
    (place / "bin" / "python").unlink()  # as when the interpreter it was made from was removed
    (place / "bin" / "python").symlink_to("/nowhere/python")
    assert not is_built(card, own)
    build(card, own)
    assert is_built(card, own)


def test_without_uv(make_card, own, monkeypatch) -> None:
    monkeypatch.setattr(environment, "uv_program", lambda: None)
    with pytest.raises(UserError, match="there is no uv here: `pip install uv`"):
        build(make_card(), own)
    assert not own.cache().exists()


def test_records_of_it_hold_no_path() -> None:
    freeze = (
        "pillow==10.4.0\nclip @ git+https://example.org/clip@abc\nlocal @ file:///home/someone/local\n-e file:///home/x"
    )
    found = environment._packages(freeze)
    assert found == {
        "pillow": "10.4.0",
        "clip": "git+https://example.org/clip@abc",
        "local": "from a local file",
    }
    assert "/home" not in json.dumps(found)
