"""`dtrain doctor`: what on this machine would keep ranks from training together, and the cure.

Each check is a function that looks at one thing and returns what it found.
"""

from dtrain.doctor.check import Check, Severity, checks_table, exit_code
from dtrain.doctor.run import examine, examine_network

__all__ = ["Check", "Severity", "checks_table", "examine", "examine_network", "exit_code"]
