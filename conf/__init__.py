"""Configuration groups of Hydra, reached as `pkg://dtrain.conf`."""
