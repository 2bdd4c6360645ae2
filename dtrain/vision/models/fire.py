"""The Fire module, SqueezeNet's building block, and the rule that gives each its width (paper sections 3.2 and 5.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

FIRST_FIRE, LAST_FIRE = 2, 9  # the paper's numbering: conv1, fire2 to fire9, conv10


@dataclass(frozen=True)
class FireWidths:
    """The numbers of filters of one Fire module: s1x1, e1x1 and e3x3 in the paper's table 1."""

    squeeze: int
    expand1x1: int
    expand3x3: int

    @property
    def out_channels(self) -> int:
        return self.expand1x1 + self.expand3x3


def fire_widths(base_e: int, incr_e: int, pct3x3: float, freq: int, squeeze_ratio: float) -> tuple[FireWidths, ...]:
    """Filters of fire2 to fire9 by the paper's metaparameters (section 5.1).

    Module i (from 0) has e_i = base_e + incr_e * floor(i / freq) expand filters, of which the share `pct3x3` is 3x3,
    and squeeze_ratio * e_i squeeze filters. Fractions of a filter are dropped; the paper's figure 3 has these sizes.

    Raises ValueError for a metaparameter out of range, or so small that one of the three has no filter left.
    """
    if base_e < 2 or incr_e < 0 or freq < 1:
        raise ValueError(f"need base_e >= 2, incr_e >= 0 and freq >= 1, got {base_e}, {incr_e} and {freq}")
    if not 0 < pct3x3 < 1 or not 0 < squeeze_ratio <= 1:
        raise ValueError(f"need 0 < pct3x3 < 1 and 0 < squeeze_ratio <= 1, got {pct3x3} and {squeeze_ratio}")
    widths = []
    for i in range(LAST_FIRE - FIRST_FIRE + 1):
        expand = base_e + incr_e * (i // freq)
        expand3x3 = _whole(pct3x3 * expand)
        fire = FireWidths(_whole(squeeze_ratio * expand), expand - expand3x3, expand3x3)
        if min(fire.squeeze, fire.expand1x1, fire.expand3x3) < 1:
            raise ValueError(
                f"fire{i + FIRST_FIRE} would have no filters in a layer ({fire}): "
                "raise base_e or squeeze_ratio, or move pct3x3 towards 0.5"
            )
        widths.append(fire)
    return tuple(widths)


class Fire(nn.Module):
    """A Fire module (paper section 3.2): (N, in_channels, H, W) -> (N, out_channels, H, W).

    `bypass` maps the input to what is added to the output (section 6); None adds nothing. Nothing follows the sum.
    """

    def __init__(self, in_channels: int, widths: FireWidths, bypass: nn.Module | None = None) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, widths.squeeze, kernel_size=1)
        self.expand1x1 = nn.Conv2d(widths.squeeze, widths.expand1x1, kernel_size=1)
        self.expand3x3 = nn.Conv2d(widths.squeeze, widths.expand3x3, kernel_size=3, padding=1)
        self.bypass = bypass

    def forward(self, x: Tensor) -> Tensor:
        squeezed = torch.relu_(self.squeeze(x))
        expanded = torch.relu_(torch.cat((self.expand1x1(squeezed), self.expand3x3(squeezed)), dim=1))
        return expanded if self.bypass is None else expanded + self.bypass(x)


def _whole(filters: float) -> int:
    return int(filters + 1e-6)  # 0.29 * 100 is 28.999999999999996
