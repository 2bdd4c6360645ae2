"""Starting ranks: `dtrain launch`, on this host, on several by ssh, in a step of Slurm's, by MPI or Horovod, and as a
manifest for Kubernetes.

What is run is a `Command`, whose line --dry-run prints: pasted into a shell it does the same. Ranks of gloo and NCCL
are started by torchrun's agent (`agent.py`), one on each host.
"""

from dtrain.launch.command import Command, Torchrun, program_of

__all__ = ["Command", "Torchrun", "program_of"]
