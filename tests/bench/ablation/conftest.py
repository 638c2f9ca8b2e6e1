"""The experiment and the domain that the tests of sweeps share."""

import copy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # spawned worker processes get it too: they import `line_domain`

LINE = """
[sweep]
name = "line"
question = "Does a faster rate bring the slope nearer?"
domain = "line"
table = "table4"
paper = { error = "lpips" }
seeds = "0-7"
metrics = ["error", "slope"]
matched = { x = "slope", references = "shrunk", metrics = ["error"], arms = ["full"] }

[settings]
steps = 15

[arms.full]
paper = "Full"
lr = 0.5

[arms.slow]
label = "w/o TSM"
paper = "w/o TSM"
lr = 0.1

[[comparisons]]
of = "full"
against = "slow"
"""


@pytest.fixture
def raw() -> dict[str, Any]:
    """The content of an experiment's file, to be changed by a test."""
    return copy.deepcopy(tomllib.loads(LINE))
