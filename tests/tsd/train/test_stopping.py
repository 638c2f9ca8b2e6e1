"""Time limits and SIGTERM."""

import os
import signal

import pytest

from tsd.errors import UserError
from tsd.train.stopping import Stopper, seconds_from_text


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 5400), ("0.5", 30), ("1:30", 5400), ("23:59:59", 86399), ("48:00", 172800)]
)
def test_times_as_clusters_write_them(text: str, seconds: float) -> None:
    assert seconds_from_text(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0:00", "1:75", "1-00:00", "soon", "-5"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        seconds_from_text(text)


def test_room_is_left_for_the_slowest_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stopper = Stopper(1000.0)  # 5 % of it, 50 s, are kept free in any case
    for what, seconds in (("step", 3.0), ("step", 10.0), ("step", 2.0), ("validation", 100.0), ("checkpoint", 40.0)):
        stopper.record(what, seconds)
    now[0] = 1000.0 + 1000.0 - 50 - 150
    assert stopper.reason() is None
    now[0] += 1
    assert stopper.reason() == "the time limit"
    assert Stopper(None).reason() is None


def test_sigterm_asks_to_stop_and_only_inside() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopper(None) as stopper:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopper.reason() == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_ends_the_step_and_a_second_one_ends_at_once() -> None:
    with Stopper(None) as stopper:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopper.reason() == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
