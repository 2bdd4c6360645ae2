"""Models in fewer bytes, where the network itself is needed: calibrated rounding, sensitivity, and from file to file.

What needs no network, and no torch, is in `pack`.
"""
