"""Distributed training that measures, and then slashes, the bytes that workers exchange."""

__version__ = "0.1.0"
