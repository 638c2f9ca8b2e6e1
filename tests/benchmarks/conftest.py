import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shape", choices=("tiny", "sd3-medium"), default="tiny",
        help="bench_restore: shape of the model, with random weights (sd3-medium: 8 GB of memory)",
    )  # fmt: skip
    parser.addoption("--short", action="store_true", help="bench_restore: the released form and ours alone")
    parser.addoption("--pairs", type=int, default=None, help="bench_restore: timed rounds of every form")
