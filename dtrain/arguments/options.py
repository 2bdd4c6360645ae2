"""Options of a function that users give by name, checked by its annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dtrain.arguments.names import check_name, nearest

WANTED: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_options(
    owner: str,
    function: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    hidden: Iterable[str] = (),
    also: Iterable[str] = (),
) -> dict[str, Any]:
    """The options as the function takes them. `owner` is "compressor top_k"; `hidden` are parameters that are no
    options, `also` are options that whoever calls takes itself.

    Raises ValueError for an option that the function does not have, with the nearest, and for a value of another type.
    """
    known = [name for name in inspect.signature(function).parameters if name not in set(hidden)]
    for name in options:
        if name not in known:
            has = [*known, *also]
            said = f"it has {', '.join(has)}" if has else "it has none"
            raise ValueError(f"{owner} has no option {name}{nearest(name, has)}: {said}")
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    return {name: converted(hints[name], value, name) for name, value in options.items()}


def converted(hint: Any, value: Any, name: str) -> Any:
    """A value that users wrote as this annotation has it: whole numbers are numbers, lists are tuples.

    Raises ValueError, with the name that the value was given by, for one of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not NoneType)
        return converted(hint, value, name)
    if origin is Literal:
        check_name(f"{name}=", value, arguments)
        return value
    if origin in (tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name}={value!r} must be a list: {name}=[...]")
        return tuple(converted(arguments[0], item, name) for item in value)
    if hint is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{name}={value!r} must be {WANTED.get(hint, 'another kind of value')}")
    if hint is float and not isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number")
    return value
