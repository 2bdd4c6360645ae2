"""The initial weights of every network here: both families use the same rule, so it is written once.

It is the rule of torchvision's SqueezeNet. AlexNet takes it too: its paper's N(0, 0.01) (section 5) shrinks the signal
layer by layer and leaves small images at chance for epochs, and He's rule (arXiv 1502.01852) keeps the variance.
"""

from torch import nn


def initialise(model: nn.Module, *, classifier: nn.Conv2d | nn.Linear) -> None:
    """Draw new weights for every convolution and linear layer of `model`, in place, from torch's global generator.

    Hidden layers: U(-b, b) with b = sqrt(6 / fan_in) (He et al., equation 10). `classifier`, the layer that gives the
    logits: N(0, 0.01), so that training starts near the uniform distribution. All biases are zero.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if module is classifier:
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
