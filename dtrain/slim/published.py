"""Networks whose weights others published under Caffe's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtrain.pack import Model

if TYPE_CHECKING:
    from dtrain.vision.models import AlexNet, SqueezeNet


def published(name: str) -> SqueezeNet | AlexNet:
    """A network with Caffe's names, without memory for its weights."""
    import torch  # here, since what has our names already needs no torch

    from dtrain.vision import models

    with torch.device("meta"):
        network = models.build(name, num_classes=1000, **models.PUBLISHED["caffe"][name])
    assert isinstance(network, models.SqueezeNet | models.AlexNet)
    return network


CAFFE = ("squeezenet1_0", "squeezenet1_1", "alexnet")


def with_our_names(model: Model) -> Model:
    """Tensors with Caffe's names and shapes of a network that we have, by the names that they have here."""
    if not any(name.endswith("|w") for name in model.tensors):
        return model
    for candidate in CAFFE:
        network = published(candidate)
        state = network.state_dict()
        names = {
            f"{caffe}|{kind}": f"{ours}.{parameter}"
            for caffe, ours in network.caffe_layers.items()
            for kind, parameter in (("w", "weight"), ("b", "bias"))
        }
        wanted = {caffe: tuple(state[ours].shape) for caffe, ours in names.items()}
        if {name: tensor.shape for name, tensor in model.tensors.items()} == wanted:
            return Model({ours: model.tensors[caffe] for caffe, ours in names.items()}, model.metadata)
    return model
