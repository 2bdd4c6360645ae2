"""Names that do not exist, and the nearest that do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_ALIKE = 0.6
"""From this ratio of `difflib` on, two names are taken for one with a slip."""


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to a message, such as " (did you mean batch_size?)"; nothing where no known name is near."""
    found = nearest_name(name, known)
    return "" if found is None else f" (did you mean {found}?)"


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that was meant, if one is near.

    Near is a name with a slip (`batchsize`), the initials of one (`lr`), or one without the group that it is of
    (`densty` where there is `compressor.density`).
    """
    names = list(known)
    group, _, last = _parts(name)
    lasts = [other for other in names if not group or _parts(other)[0] == group]
    found = (
        (group and [other for other in lasts if last.lower() == _initials(other)])
        or difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)
        or [other for other in lasts if last.lower() in (_initials(other), _parts(other)[2])]
        or _with_the_last_part_alike(last, lasts)
        or [other for other in lasts if len(last) > 1 and _parts(other)[2].startswith(last)]
    )
    return found[0] if found else None


def check_name(label: str, name: object, known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not among the known. `label` is what stands before it: "model "."""
    names = list(known)
    if name not in names:
        like = nearest(name, names) if isinstance(name, str) else ""
        raise ValueError(f"{label}{name} does not exist{like}: choose one of {', '.join(names)}")


def _parts(name: str) -> tuple[str, str, str]:
    return name.rpartition(".")


def _initials(name: str) -> str:
    words = _parts(name)[2].split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def _with_the_last_part_alike(last: str, names: list[str]) -> list[str]:
    found = difflib.get_close_matches(last, [_parts(other)[2] for other in names], n=1, cutoff=_ALIKE)
    return [other for other in names if found and _parts(other)[2] == found[0]]
