"""A cluster on one machine: a network namespace per node, joined by links of a chosen speed.

Nothing here outlives its use. Namespaces have no names: they exist while this process holds them open or a program runs
in them, and every node's programs end with this process, even if it is killed. So there is nothing to clean up.
"""

from dtrain.cluster.namespaces import rate_of_link
from dtrain.cluster.run import Outcome, outcome_table, run_cluster

__all__ = ["Outcome", "outcome_table", "rate_of_link", "run_cluster"]
