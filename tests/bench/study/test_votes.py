"""Files of votes: what is refused, what is flagged, and that both are said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.study.design import Plan
from bench.study.simulate import simulate
from bench.study.study import Study, read_study, write_study
from bench.study.votes import Box, Rules, checksum, open_box
from tsd.errors import UserError

PREFERENCE = (8.0, 4.0, 2.0, 1.0)


@pytest.fixture
def study(new_study: Callable[..., Study]) -> Study:
    return new_study(Plan(raters=4, traps=4))


@pytest.fixture
def votes(study: Study, tmp_path: Path) -> list[Path]:
    return simulate(study, PREFERENCE, tmp_path / "votes")


def edit(path: Path, change: Callable[[dict], object], *, sealed: bool = False) -> None:
    """Edits a file of votes; `sealed` gives it the checksum that fits."""
    raw = json.loads(path.read_text())
    change(raw)
    if sealed:
        raw["checksum"] = checksum(raw["study"], raw["rater"], raw["token"], raw["simulated"], raw["answers"])
    path.write_text(json.dumps(raw))


def opened(study: Study, votes: list[Path]) -> Box:
    return open_box([votes[0].parent], study, Rules())


def other_choice(raw: dict) -> None:
    answer = raw["answers"][0]
    answer["chosen"] = answer["shown"][1 if answer["chosen"] == answer["shown"][0] else 0]


@pytest.mark.parametrize(
    ("change", "sealed", "reason"),
    [
        (other_choice, False, "edited or damaged"),
        (lambda raw: raw["answers"][3].update(milliseconds=1), False, "edited or damaged"),
        (lambda raw: raw["answers"].pop(), False, "edited or damaged"),
        (lambda raw: raw.update(study="0" * 16), True, "votes of another study"),
        (lambda raw: raw.update(rater=99), True, "1 to 4"),
        (lambda raw: raw.update(rater=raw["rater"] % 4 + 1), True, "was not asked"),
        (lambda raw: raw["answers"][2].update(chosen=10_000), True, "not shown"),
        (lambda raw: raw["answers"][1].update(trial="1"), False, "damaged"),
        (lambda raw: raw["answers"].clear(), True, "no answers"),
        (lambda raw: raw.update(schema=2), True, "schema 2"),
    ],
)
def test_a_file_is_refused_with_the_reason(study: Study, votes: list[Path], change, sealed: bool, reason: str) -> None:
    edit(votes[1], change, sealed=sealed)
    box = opened(study, votes)
    assert [path.name for path, _ in box.refused] == [votes[1].name]
    assert reason in box.refused[0][1]
    assert len(box.ballots) == 3


def test_what_is_no_file_of_votes(study: Study, votes: list[Path]) -> None:
    votes[0].write_text("{")
    votes[1].write_text('{"name": "x"}')
    assert [reason.partition(" (")[0] for _, reason in opened(study, votes).refused] == [
        "not a file of the voting page"
    ] * 2
    for path in votes[2:]:
        path.write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match="none of the 4 files"):
        opened(study, votes)
    with pytest.raises(UserError, match="no votes at"):
        open_box([votes[0].parent / "nowhere"], study, Rules())


def test_a_forgery_is_not_found_and_nobody_says_so(study: Study, votes: list[Path]) -> None:
    """The checksum is no signature: documents say so, and this shows it."""
    edit(votes[1], other_choice, sealed=True)
    assert opened(study, votes).refused == []


def test_of_one_rater_the_fuller_file_counts(study: Study, votes: list[Path]) -> None:
    copy = votes[0].with_name("again.json")
    copy.write_bytes(votes[0].read_bytes())
    edit(votes[0], lambda raw: raw["answers"].pop(), sealed=True)
    box = opened(study, votes)
    assert [(path.name, "the same rater as again.json" in reason) for path, reason in box.refused] == [
        (votes[0].name, True)
    ]
    assert box.ballots[0].path.name == "again.json"


def test_people_and_simulated_raters_do_not_mix(study: Study, votes: list[Path]) -> None:
    edit(votes[2], lambda raw: raw.update(simulated=""), sealed=True)
    with pytest.raises(UserError, match="score them apart"):
        opened(study, votes)


def test_doubtful_raters_are_flagged(study: Study, votes: list[Path]) -> None:
    def choose(pick: Callable[[dict], int], milliseconds: int = 5000) -> Callable[[dict], None]:
        def change(raw: dict) -> None:
            for answer in raw["answers"]:
                answer.update(chosen=pick(answer), milliseconds=milliseconds)

        return change

    trials = study.trials_of(1)
    wrong = [study.pictures_of(trial)[trial.shown.index(-2)] if trial.kind == "trap" else None for trial in trials]
    edit(votes[0], choose(lambda answer: answer["shown"][0]), sealed=True)
    edit(
        votes[1],
        lambda raw: [a.update(chosen=wrong[a["trial"]]) for a in raw["answers"] if wrong[a["trial"]]],
        sealed=True,
    )
    edit(votes[2], choose(lambda answer: min(answer["shown"]), 200), sealed=True)
    flags = [" ".join(ballot.flags) for ballot in opened(study, votes).ballots]
    assert "left in 100%" in flags[0]
    assert "4 of 4 traps" in flags[1]
    assert "within 0.20 s" in flags[2]
    assert flags[3] == ""


def test_careless_raters_are_flagged_and_careful_ones_hardly_ever(
    new_study: Callable[..., Study], tmp_path: Path
) -> None:
    study = new_study(Plan(raters=60))
    box = open_box([simulate(study, PREFERENCE, tmp_path / "votes", careless=20)[0].parent], study, Rules())
    flagged = [ballot.rater for ballot in box.ballots if ballot.flags]
    assert set(range(40, 60)) <= set(flagged)
    assert len([rater for rater in flagged if rater < 40]) <= 4


def test_a_changed_key_is_refused(study: Study, tmp_path: Path) -> None:
    path = write_study(study, tmp_path / "study")
    assert read_study(tmp_path / "study") == read_study(path) == study
    path.write_text(path.read_text().replace('"Method 0"', '"Method X"'))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_study(path)
    path.write_text('{"schema": 1, "id": "x"}')
    with pytest.raises(UserError, match="not the key of a study"):
        read_study(path)
    with pytest.raises(UserError, match="which holds the key"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("preference", "careless", "message"),
    [((1.0, 2.0), 0, "--preference"), ((1, 1, 1, 0), 0, "--preference"), (PREFERENCE, 5, "--careless 5")],
)
def test_raters_that_cannot_be_simulated(study: Study, tmp_path: Path, preference, careless: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        simulate(study, preference, tmp_path / "new", careless)


def test_votes_do_not_mix_with_other_files(study: Study, votes: list[Path]) -> None:
    with pytest.raises(UserError, match="not empty"):
        simulate(study, PREFERENCE, votes[0].parent)
