"""How gradients meet the network: driving exchanges, buckets, the trainer's own synchroniser, and a hook for DDP."""
