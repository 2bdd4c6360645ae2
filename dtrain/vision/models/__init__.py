"""The networks whose training is measured: SqueezeNet in the paper's design space, and its baseline AlexNet.

`build` makes one by name, `variant` says which layout it is, `load_weights` fills it from a file.
"""

from dtrain.vision.models.alexnet import AlexNet
from dtrain.vision.models.factors import factorise, ranks_of
from dtrain.vision.models.load_weights import load_weights
from dtrain.vision.models.registry import MODELS, PUBLISHED, Option, build, complete_options, rebuild, variant
from dtrain.vision.models.squeezenet import SqueezeNet

__all__ = [
    "MODELS",
    "PUBLISHED",
    "AlexNet",
    "Option",
    "SqueezeNet",
    "build",
    "complete_options",
    "factorise",
    "load_weights",
    "ranks_of",
    "rebuild",
    "variant",
]
