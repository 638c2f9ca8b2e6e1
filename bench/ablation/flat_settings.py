"""Settings of an arm written flat: each has the type of its default, whatever TOML or JSON made of it."""

from collections.abc import Mapping
from typing import Any

from tsd.errors import UserError


def typed(settings: Mapping[str, Any], defaults: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """All settings, defaults included: lists as tuples where the default is one, whole numbers as floats.

    Args:
        domain: its name, for errors.

    Raises:
        UserError: an unknown setting, or one of another type than its default.
    """
    unknown = [name for name in settings if name not in defaults]
    if unknown:
        raise UserError(f"unknown settings {', '.join(unknown)}; the domain {domain} knows {', '.join(defaults)}")
    return {name: _as(name, settings.get(name, default), default) for name, default in defaults.items()}


def _as(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not value:
            raise UserError(f"{name} = {value!r}; expected a list of numbers")
        return tuple(_as(name, item, default[0]) for item in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UserError(f"{name} = {value!r}; expected {type(default).__name__}, found {type(value).__name__}")
    return value
