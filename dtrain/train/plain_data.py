"""From plain data, as YAML gives it, to frozen dataclasses: checked by their annotations, every error with its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Named:
    """A registry's name, with options for what it names."""

    name: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


Registries = Mapping[type, Mapping[str, type]]
"""For a dataclass whose data choose by `name` which one of several it is."""


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message, which names the setting and the cure, unless the condition holds."""
    if not condition:
        raise ValueError(message)


def build(kind: Any, data: Any, path: str, registries: Registries) -> Any:
    """An instance of the dataclass `kind`; `path` is where its data stand, with a dot at its end.

    Raises ValueError, naming the key and the cure, for a value of the wrong type and for an unknown or missing key.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{path.rstrip('.')}={data!r} must be a group of settings")
    if kind is Named:
        options = {key: value for key, value in data.items() if key != "name"}
        return Named(_convert(str, data.get("name"), f"{path}name", registries), MappingProxyType(options))
    if kind in registries:
        kind = _chosen(registries[kind], data.get("name"), path)
    hints = get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise ValueError(f"{path}{unknown[0]} is not a setting; there are: {', '.join(path + name for name in hints)}")
    missing = [
        f.name for f in fields(kind) if f.name not in data and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{path}{missing[0]} is missing")
    return kind(**{name: _convert(hints[name], value, path + name, registries) for name, value in data.items()})


def _chosen(registry: Mapping[str, type], name: Any, path: str) -> type:
    if name not in registry:
        raise ValueError(f"{path}name={name} does not exist: choose one of {', '.join(registry)}")
    return registry[name]


def _convert(hint: Any, value: Any, path: str, registries: Registries) -> Any:
    if get_origin(hint) in (Union, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        choices = [choice for choice in get_args(hint) if choice is not NoneType]
        hint = next((choice for choice in choices if type(value) is choice), choices[0])
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        require(value in arguments, f"{path}={value} does not exist: choose one of {', '.join(arguments)}")
        return value
    if origin is Mapping:
        require(isinstance(value, Mapping), f"{path}={value!r} must be a group of settings")
        kind = arguments[1]
        return MappingProxyType(
            {str(key): _convert(kind, item, f"{path}.{key}", registries) for key, item in value.items()}
        )
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{path}={value!r} must be a list: {path}=[...]")
        return tuple(_convert(arguments[0], item, path, registries) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, bool, str):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
        require(type(value) is hint, f"{path}={value!r} must be {wanted}")
        return value
    return build(hint, value, path + ".", registries)
