"""Training: from a configuration to a run directory.

`entry` is the command, `config` what can be set, `job` what a run consists of, `loop` how it trains.
"""
