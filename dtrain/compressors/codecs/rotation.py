"""Random rotations of blocks of 1024 values, after which every block looks like so many normal numbers.

Rotations are products of random signs and Hadamard matrices, H32 twice on the 32 x 32 values of a block and once on its
rows: what Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation" (NeurIPS 2021), section 6, do once with a
matrix of the block's size. Once is not enough for blocks of few large values, as of heavy tails: of two values alone,
1 and 1/2, the signs never tell the second. With a third of a second rotation before it the bias was not to be seen
(docs/log.md).
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from dtrain.compressors.codecs.workspace import without_waiting

SIDE = 32
BLOCK = SIDE * SIDE
GAIN = float(SIDE) * sqrt(SIDE)
"""What `unrotate` multiplies lengths by: it leaves out the normalisation of its three matrices."""


class Rotation:
    """The rotation that belongs to a number, the same on every device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        drawn = torch.randint(0, 2, (2, BLOCK), generator=torch.Generator().manual_seed(seed))
        signs = drawn.to(torch.float32).mul_(2.0).sub_(1.0)
        self._first, self._second = without_waiting(signs, device).unbind()
        self._ones = without_waiting(_hadamard(), device)

    def rotate(self, values: Tensor, spare: Tensor) -> Tensor:
        """Turn each row of `values`, float32 of shape (rows, BLOCK). Returns `spare`, as large; both are used."""
        matrix = self._ones * (1.0 / sqrt(SIDE))
        torch.mm(values.mul_(self._first).view(-1, SIDE), matrix, out=spare.view(-1, SIDE))
        torch.mm(spare.mul_(self._second).view(-1, SIDE), matrix, out=values.view(-1, SIDE))
        torch.matmul(matrix, values.view(-1, SIDE, SIDE), out=spare.view(-1, SIDE, SIDE))
        return spare

    def unrotate(self, values: Tensor, spare: Tensor) -> Tensor:
        """Turn each row back, and stretch it by GAIN: returns `spare`, as `rotate` does.

        Rows of 1 and -1 stay integers below 2^24, so the result is exact, whatever the order of the sums.
        """
        torch.matmul(self._ones, values.view(-1, SIDE, SIDE), out=spare.view(-1, SIDE, SIDE))
        torch.mm(spare.view(-1, SIDE), self._ones, out=values.view(-1, SIDE))
        torch.mm(values.mul_(self._second).view(-1, SIDE), self._ones, out=spare.view(-1, SIDE))
        return spare.mul_(self._first)


def _hadamard() -> Tensor:
    """H32, of 1 and -1 (Sylvester's)."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    matrix = two
    while len(matrix) < SIDE:
        matrix = torch.kron(matrix, two)
    return matrix
