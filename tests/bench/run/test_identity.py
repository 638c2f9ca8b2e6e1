"""What several processes say of one method. What records say is tested in test_restore.py."""

import pytest

from bench.run.identity import agreed_provenance, differences
from tsd.errors import UserError


def test_processes_that_say_the_same_agree_and_those_without_the_method_do_not_count() -> None:
    account = {"weights": {"net.pth": "aa"}, "steps": 4}
    assert agreed_provenance([account], "net") == account
    assert agreed_provenance([None, account, dict(reversed(account.items()))], "net") == account
    assert agreed_provenance([None, None], "net") is None


def test_another_weight_in_one_process_is_named() -> None:
    account = {"weights": {"net.pth": "aa"}, "steps": 4}
    with pytest.raises(UserError) as error:
        agreed_provenance([None, account, account, {**account, "weights": {"net.pth": "bb"}}], "net")
    assert "net is not the same in every process" in str(error.value)
    assert "weights.net.pth: process 1 has 'aa', process 3 'bb'" in str(error.value)
    assert "steps" not in str(error.value)


def test_differences_name_the_leaves_that_changed_on_either_side() -> None:
    assert differences({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}) == []
    assert differences({"a": {"x": 1}, "old": 0}, {"a": {"x": 2}, "new": True}) == [
        "a.x: recorded 1, now 2",
        "old: recorded 0, now None",
        "new: recorded None, now True",
    ]
    assert differences({"a": "x" * 100}, {"a": 1})[0] == f"a: recorded '{'x' * 56}..., now 1"


def test_differences_of_long_lists_show_what_differs() -> None:
    pins = [f"package-{number}==1.{number}" for number in range(20)]
    newer = ["package-19==2.0" if pin == pins[19] else pin for pin in pins]
    assert differences({"pins": pins}, {"pins": newer}) == [
        "pins: recorded 'package-19==1.19', now 'package-19==2.0'"
    ]  # fmt: skip
    assert differences({"pins": pins}, {"pins": [*pins, "extra"]}) == ["pins: only now ['extra']"]
    assert differences({"pins": pins}, {"pins": pins[1:]}) == ["pins: only recorded ['package-0==1.0']"]
    assert differences({"pins": pins}, {"pins": pins[::-1]}) == ["pins: in another order"]
    assert differences(["a", "b", "c"], ["a", "x", "y"], "pins") == ["pins: recorded ['b', 'c'], now ['x', 'y']"]
    patches = [{"file": "test.py", "sha256": "aa"}, {"file": "data.py", "sha256": "bb"}]
    changed = [patches[0], {"file": "data.py", "sha256": "cc"}]
    assert differences({"patches": patches}, {"patches": changed}) == ["patches.sha256: recorded 'bb', now 'cc'"]
