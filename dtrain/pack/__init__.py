"""Models on disk in fewer bytes: stages that compose, entropy coding with contexts, and the .dtz container."""

from dtrain.pack.container import Container, arrays, from_bytes, to_bytes
from dtrain.pack.deep_compression import read_net
from dtrain.pack.difference import apply_difference, make_difference
from dtrain.pack.entropy import CODERS
from dtrain.pack.model_file import Model, parse_safetensors, read_npz, read_safetensors, write_safetensors
from dtrain.pack.pipeline import pack, unpack
from dtrain.pack.presets import PRESETS
from dtrain.pack.stage import Stage
from dtrain.pack.tensor import Tensor
from dtrain.pack.uniform import OnGrid

__all__ = [
    "CODERS",
    "PRESETS",
    "Container",
    "Model",
    "OnGrid",
    "Stage",
    "Tensor",
    "apply_difference",
    "arrays",
    "from_bytes",
    "make_difference",
    "pack",
    "parse_safetensors",
    "read_net",
    "read_npz",
    "read_safetensors",
    "to_bytes",
    "unpack",
    "write_safetensors",
]
