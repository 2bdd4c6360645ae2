"""From plain data, as YAML gives it, to frozen dataclasses: checked by their annotations, every error with its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from dtrain.arguments import check_name, converted, nearest


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
        like = nearest(unknown[0], hints)
        raise ValueError(
            f"{path}{unknown[0]} is not a setting{like}; there are: {', '.join(path + name for name in hints)}"
        )
    missing = [
        f.name for f in fields(kind) if f.name not in data and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{path}{missing[0]} is missing")
    return kind(**{name: _convert(hints[name], value, path + name, registries) for name, value in data.items()})


def _chosen(registry: Mapping[str, type], name: Any, path: str) -> type:
    check_name(f"{path}name=", str(name), registry)
    return registry[name]


def _convert(hint: Any, value: Any, path: str, registries: Registries) -> Any:
    if get_origin(hint) in (Union, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        choices = [choice for choice in get_args(hint) if choice is not NoneType]
        hint = next((choice for choice in choices if type(value) is choice), choices[0])
    if get_origin(hint) is Mapping:
        require(isinstance(value, Mapping), f"{path}={value!r} must be a group of settings")
        kind = get_args(hint)[1]
        return MappingProxyType(
            {str(key): _convert(kind, item, f"{path}.{key}", registries) for key, item in value.items()}
        )
    if hint is Named or is_dataclass(hint):
        return build(hint, value, path + ".", registries)
    return converted(hint, value, path)
