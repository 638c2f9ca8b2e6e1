"""In what two records differ, in words: settings of two runs, or of a run and its continuation."""

from typing import Any, cast

from bench.provenance import sha256_json


def differences(old: Any, new: Any, at: str = "", *, words: tuple[str, str] = ("recorded", "now")) -> list[str]:
    """Readable differences of two JSON-able values: a line per changed leaf, and the items that only one list has."""
    if isinstance(old, dict) and isinstance(new, dict):
        before, now = cast(dict[str, Any], old), cast(dict[str, Any], new)
        found: list[str] = []
        for key in dict.fromkeys([*before, *now]):
            found += differences(before.get(key), now.get(key), f"{at}.{key}" if at else key, words=words)
        return found
    if sha256_json(old) == sha256_json(new):
        return []
    if isinstance(old, list) and isinstance(new, list):
        olds, news = cast(list[Any], old), cast(list[Any], new)
        gone, added = [item for item in olds if item not in news], [item for item in news if item not in olds]
        if len(gone) == len(added) == 1:
            return differences(gone[0], added[0], at, words=words)
        if not (gone and added):
            only = [(word, items) for word, items in zip(words, (gone, added), strict=True) if items]
            return [f"{at}: only {word} {_short(items)}" for word, items in only] or [f"{at}: in another order"]
        old, new = gone, added
    return [f"{at}: {words[0]} {_short(old)}, {words[1]} {_short(new)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
