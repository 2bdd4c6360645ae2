"""Command lines by argparse, whose mistakes are one line that says the nearest option or verb."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from dtrain.arguments.names import nearest
from dtrain.arguments.options import WANTED


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ValueError, naming the cure, for a mistake."""

    def error(self, message: str) -> NoReturn:
        """What argparse calls for a mistake."""
        raise ValueError(f"{message}: see `{self.prog} --help`")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse does; but the parser of a verb, which knows its options, refuses others itself."""
        parsed, extra = super().parse_known_args(args, namespace)
        for argument in extra:
            if argument.startswith("-"):
                self.refuse_option(argument)
        return parsed, extra

    def refuse_option(self, argument: str) -> NoReturn:
        """Raise ValueError for an option that does not exist."""
        name = argument.partition("=")[0]
        self.error(f"there is no option {name}{nearest(name, self._option_string_actions)}")

    # The places where argparse looks at a value are not public, and its words for what is wrong there name no cure.

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            like = nearest(str(value), choices)
            self.error(f"{_name(action)} {value} does not exist{like}: choose one of {', '.join(choices)}")

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError:
            if action.type not in WANTED:
                raise
            self.error(f"{_name(action)} {text} must be {WANTED[action.type]}")


def _name(action: argparse.Action) -> str:
    """As users know it: an option by its longest form, anything else by the word that help has for it."""
    if action.option_strings:
        return max(action.option_strings, key=len)
    return action.metavar if isinstance(action.metavar, str) else action.dest
