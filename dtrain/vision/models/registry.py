"""The networks by name, and how one is built from what a configuration or a saved model's metadata says.

A model is fully described by its name, its number of classes and its options, all of them values that JSON can hold:
`build(name, num_classes=n, **options)` gives the same modules again. Save `complete_options(...)` rather than what the
user wrote, so that a file still means the same model after a default has changed.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from dtrain.arguments import check_name, check_options
from dtrain.vision.models.alexnet import AlexNet, alexnet, alexnet_torchvision
from dtrain.vision.models.factors import factorise
from dtrain.vision.models.squeezenet import SqueezeNet, squeezenet1_0, squeezenet1_1

Option = bool | int | float | str | tuple[int, ...]

MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "squeezenet1_0": squeezenet1_0,
        "squeezenet1_1": squeezenet1_1,
        "squeezenet": SqueezeNet,
        "alexnet": alexnet,
        "alexnet_torchvision": alexnet_torchvision,
    }
)

PUBLISHED: Mapping[str, Mapping[str, Mapping[str, Option]]] = MappingProxyType(
    {
        "caffe": {
            "squeezenet1_0": {"conv10_padding": 1, "final_relu": True},
            "squeezenet1_1": {"final_relu": True},
            "alexnet": {},
        },
        "torchvision": {
            "squeezenet1_0": {"final_relu": True},
            "squeezenet1_1": {"final_relu": True},
            "alexnet_torchvision": {},
        },
    }
)
"""The options under which published weights compute what they did where they were trained: source -> model -> options.

`build(name, num_classes=1000, **PUBLISHED["caffe"][name])`, then `load_weights`. The defaults are for training.
"""


def build(name: str, *, num_classes: int, **options: object) -> nn.Module:
    """A new model on torch's default device, its weights drawn from torch's global generator.

    Args:
        name: a key of `MODELS`.
        num_classes: how many logits, at least 1.
        options: what `complete_options(name)` lists; a value of the wrong type is refused, a list is taken for a tuple.

    Returns:
        A module from images (N, 3, H, W) to logits (N, num_classes), in training mode.

    Raises:
        ValueError: the name or an option does not exist (the message lists what does), or a value is out of range.
    """
    complete = complete_options(name, **options)
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
    return MODELS[name](num_classes=num_classes, **complete)


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """The model that a saved file's description is of: `build`'s arguments, and the `ranks` of its factored layers.

    On torch's default device: on "meta" nothing is allocated, whatever the description says. Raises ValueError for one
    that describes no model.
    """
    name, options, ranks = (description.get(key) for key in ("name", "options", "ranks"))
    if not isinstance(name, str) or not isinstance(options, Mapping) or not isinstance(ranks, Mapping | None):
        raise ValueError("its description names no model with options")
    try:
        model = build(name, num_classes=description.get("num_classes"), **options)  # type: ignore[arg-type]
        factorise(model, ranks or {}, fill=False)
    except ValueError:
        raise
    except Exception as error:  # torch fails in several ways where a size is beyond all bounds
        raise ValueError(f"its description is of no model that can be built ({type(error).__name__})") from None
    return model


def complete_options(name: str, **options: object) -> dict[str, Option]:
    """Every option of model `name` with its value: the one in `options`, else the default. Same errors as `build`."""
    check_name("model ", name, MODELS)
    parameters = inspect.signature(MODELS[name]).parameters
    complete: dict[str, Option] = {key: p.default for key, p in parameters.items() if key != "num_classes"}
    return complete | check_options(f"model {name}", MODELS[name], options, hidden=["num_classes"])


def variant(model: nn.Module) -> str:
    """Which layout `model` is, for reports: "torchvision layout, simple bypass, final ReLU off", say.

    A model from elsewhere is called by its class.
    """
    return model.variant if isinstance(model, SqueezeNet | AlexNet) else type(model).__name__
