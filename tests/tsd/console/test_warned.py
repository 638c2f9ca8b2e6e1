"""What a command prints of warnings."""

import warnings

from tsd.console.warned import PACKAGES, plain_warnings


def test_our_warnings_are_plain_and_those_of_others_say_where() -> None:
    ours, theirs = f"{PACKAGES[0]}train/feed.py", "/elsewhere/torch/nn.py"
    before = warnings.formatwarning("slow", UserWarning, ours, 7, "x = 1")
    with plain_warnings():
        assert (
            warnings.formatwarning("left out\n  a.png", UserWarning, ours, 7, "x = 1") == "warning: left out\n  a.png\n"
        )
        assert warnings.formatwarning("slow", UserWarning, theirs, 7, "x = 1").startswith(theirs)
        assert warnings.formatwarning("soon gone", DeprecationWarning, ours, 7, "x = 1").startswith(ours)
    assert warnings.formatwarning("slow", UserWarning, ours, 7, "x = 1") == before
