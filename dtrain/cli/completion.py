"""What a shell offers at the Tab key: completion."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from itertools import chain

from dtrain.cli.output import Verbs

_SETTINGS = ("train", "resume", "plan", "simulate", "sweep")
"""Verbs that take settings of a training."""
_BASH = """\
# dtrain completion bash: source <(dtrain completion bash)
_dtrain() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  case "${{COMP_WORDS[1]-}} ${{COMP_WORDS[2]-}}" in
{cases}
    *) words={first} ;;
  esac
  [[ $COMP_CWORD != 1 ]] || words={first}
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ ${{#COMPREPLY[@]}} != 0 ]] || return 0
  COMPREPLY=("${{COMPREPLY[@]/%/ }}") # a space behind each but settings, whose value follows
  COMPREPLY=("${{COMPREPLY[@]/%= /=}}")
}}
complete -o nospace -o default -F _dtrain dtrain
"""
_ZSH = """\
#compdef dtrain
# dtrain completion zsh: source <(dtrain completion zsh), after compinit
autoload -U +X bashcompinit && bashcompinit
"""


def add_to(verbs: Verbs) -> None:
    """Add what this file has."""
    completion = verbs.add_parser(
        "completion",
        help="what bash, zsh or fish needs to complete verbs, options and settings",
        description="bash: source <(dtrain completion bash); zsh: the same after compinit; "
        "fish: dtrain completion fish | source",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(run=_completion)


def _completion(parsed: argparse.Namespace) -> int:
    from dtrain.cli import command_line

    words = words_of(command_line())
    print({"bash": _bash, "zsh": lambda words: _ZSH + _bash(words), "fish": _fish}[parsed.shell](words), end="")
    return 0


def words_of(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """What may follow: by verb, as "plan" or "ship publish"; verbs themselves by ""."""
    from dtrain.train.compose import setting_names

    found = dict(_walk(parser, ""))
    settings = [f"{name}=" for name in setting_names()]
    for verb in _SETTINGS:
        found[verb] = [*found[verb], *settings]
    return found


def _walk(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, list[str]]]:
    verbs: Mapping[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            verbs = action.choices
    positional = chain.from_iterable(
        action.choices for action in parser._actions if action.choices and not action.option_strings
    )
    options = [max(action.option_strings, key=len) for action in parser._actions if action.option_strings]
    yield path, [*map(str, positional), *options]
    for verb, below in verbs.items():
        yield from _walk(below, f"{path} {verb}".strip())


def _bash(words: Mapping[str, list[str]]) -> str:
    """Groups of verbs last: "ship publish" goes before "ship"."""
    paths = sorted((path for path in words if path), key=lambda path: -path.count(" "))
    cases = "\n".join(f"    {_pattern(path)}) words={_quoted(words[path])} ;;" for path in paths)
    return _BASH.format(cases=cases, first=_quoted(words[""]))


def _pattern(path: str) -> str:
    return path.replace(" ", r"\ ") if " " in path else f"{path}\\ *"


def _quoted(words: list[str]) -> str:
    return f"'{' '.join(words)}'"


def _fish(words: Mapping[str, list[str]]) -> str:
    lines = ["# dtrain completion fish: dtrain completion fish | source"]
    for path, offered in words.items():
        below = [verb.removeprefix(f"{path} ") for verb in words if path and verb.startswith(f"{path} ")]
        seen = [f"__fish_seen_subcommand_from {verb}" for verb in path.split()] or ["__fish_use_subcommand"]
        if below:
            seen += [f"not __fish_seen_subcommand_from {' '.join(below)}"]
        no_files = " -f" if below or not path else ""
        lines += [f"complete -c dtrain{no_files} -n '{' && '.join(seen)}' -a '{' '.join(offered)}'"]
    return "\n".join(lines) + "\n"
