"""A job whose workers come and go while the others live on: `dtrain elastic`."""

from dtrain.elastic.coordinator import Coordinator
from dtrain.elastic.supervisor import Supervisor, serve

__all__ = ["Coordinator", "Supervisor", "serve"]
