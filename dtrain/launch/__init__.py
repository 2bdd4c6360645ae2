"""Starting ranks: `dtrain launch`, on this host, on several by ssh, in a step of Slurm's, and by MPI or Horovod.

What is run is a `Command` (`command.py`), whose line --dry-run prints: pasted into a shell it does the same. Ranks of
gloo and NCCL are started by torchrun's agent (`agent.py`), one on each host.

What needs torch is imported where it is used, since here is nothing to compute.
"""
