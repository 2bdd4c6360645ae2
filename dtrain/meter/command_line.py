"""A command as it may be kept in a file, and an address as it may be shown: without what looks like a secret, since
people hand on runs, traces and pictures of their screens."""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "***"

_WORDS = frozenset(
    {
        *("token", "secret", "password", "passwd", "pwd", "passphrase", "key", "apikey"),
        *("credential", "credentials", "auth", "authorization", "bearer", "cookie"),
    }
)
"""Of a name whose value is none of others' business; `tokens`, which are counted, and `tokenizer` are others."""
_IN_URL = re.compile(r"(?<=://)[^/\s]+(?=@)")
_BEFORE_HOST = re.compile(r"(?<=://).*(?=@)")
"""Also of a password with a slash, which ends the host of a URL: such a one is refused, and said."""
_WHOLE = re.compile(r"(-*[\w.+-]+[=:]\s*)\S.*", re.DOTALL)
_INSIDE = re.compile(r"""([\w.-]+)(["']?\s*[=:]\s*["']?)([^\s,;&#"'}\]]+)""")
_IN_QUERY = re.compile(r"(?<=[?&])([\w.-]+)(=)([^\s&#]+)")
_ISSUED = re.compile(
    r"(?<![A-Za-z0-9])(?:gh[pousr]_|github_pat_|hf_|sk-|xox[abprs]-|glpat-|AKIA|AIza|eyJ)[\w.-]{12,}"
    r"|(?<=[Bb]earer )\S+|(?<=[Bb]asic )\S{8,}"
)
"""What services issue, which begins as they say."""


def without_secrets(command: Sequence[str]) -> list[str]:
    """The command, with `***` in place of passwords in URLs, values of names such as token, and keys of services."""
    shown: list[str] = []
    is_value = False
    for argument in command:
        if is_value and not argument.startswith("-"):
            shown.append(HIDDEN)
            is_value = False
            continue
        is_value = argument.startswith("-") and "=" not in argument and _is_secret(argument)
        shown.append(_masked(argument))
    return shown


def url_without_secrets(url: str) -> str:
    """An address, well-formed or not, with `***` in place of user and password, and of a token in its query."""
    return without_secrets([_BEFORE_HOST.sub(HIDDEN, url)])[0]


def _masked(argument: str) -> str:
    whole = _WHOLE.fullmatch(argument)
    if whole is not None and _is_secret(whole[1]):
        return whole[1] + HIDDEN
    text = _ISSUED.sub(HIDDEN, _IN_URL.sub(HIDDEN, argument))
    for pattern in (_IN_QUERY, _INSIDE):
        text = pattern.sub(lambda found: found[1] + found[2] + HIDDEN if _is_secret(found[1]) else found[0], text)
    return text


def _is_secret(name: str) -> bool:
    return any(word.lower() in _WORDS for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name))
