"""A job whose workers come and go while the others live on: `dtrain elastic`."""

from dtrain.elastic.serving import join, serve

__all__ = ["join", "serve"]
