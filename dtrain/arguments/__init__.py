"""What users write and get wrong: names that do not exist, options of the wrong type, command lines, and how they end.

Every message about a mistake says the nearest that exists, and is one line; this package is where that is done.
"""

from dtrain.arguments.doing import say_doing
from dtrain.arguments.ending import FAILED, INTERRUPTED, MISTAKE, ending, on_signals, say_error
from dtrain.arguments.names import check_name, nearest, nearest_name
from dtrain.arguments.options import check_options, converted
from dtrain.arguments.parser import Parser

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "MISTAKE",
    "Parser",
    "check_name",
    "check_options",
    "converted",
    "ending",
    "nearest",
    "nearest_name",
    "on_signals",
    "say_doing",
    "say_error",
]
