"""Which parameters of a bucket are matrices worth a product of two thin ones, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from dtrain.exchange import Layout


class Matrices:
    """The parameters of `layout` that rank-`r` factors make smaller, as matrices of (shape[0], the rest); and `others`.

    Factors are stored by rows: P as (r, rows) and Q as (r, columns), so that P^T Q has the matrix's shape. `first` is
    the flat vector that holds all P, then all other parameters.
    """

    def __init__(self, layout: Layout, r: int) -> None:
        self._layout, self._gains = layout, [gains(shape, r) for shape in layout.shapes]
        chosen = layout.keep(self._gains)
        columns = [size // shape[0] for size, shape in zip(chosen.sizes, chosen.shapes, strict=True)]
        self.p_layout = Layout(chosen.names, tuple((r, shape[0]) for shape in chosen.shapes))
        self.q_layout = Layout(chosen.names, tuple((r, count) for count in columns))
        self._others = layout.keep([not yes for yes in self._gains])
        self.first_numel = self.p_layout.numel + self._others.numel

    def of(self, flat: Tensor) -> list[Tensor]:
        """The matrices in a vector of the layout, as views."""
        return [piece.view(piece.shape[0], -1) for piece in self._chosen(flat, True)]

    def others(self, flat: Tensor) -> list[Tensor]:
        """The other parameters in a vector of the layout, as views."""
        return self._chosen(flat, False)

    def ps(self, first: Tensor) -> list[Tensor]:
        """Every P in `first`."""
        return [piece for _, piece in self.p_layout.pieces(first[: self.p_layout.numel])]

    def others_in(self, first: Tensor) -> list[Tensor]:
        """The other parameters in `first`."""
        return [piece for _, piece in self._others.pieces(first[self.p_layout.numel :])]

    def qs(self, flat: Tensor) -> list[Tensor]:
        """Every Q in the vector of `q_layout`."""
        return [piece for _, piece in self.q_layout.pieces(flat)]

    def put_products(self, ps: Sequence[Tensor], q: Tensor, flat: Tensor) -> None:
        """Each matrix in `flat` becomes P^T Q, element by element in the same order on every rank."""
        for p, factor, matrix in zip(ps, self.qs(q), self.of(flat), strict=True):
            torch.outer(p[0], factor[0], out=matrix)
            for p_row, q_row in zip(p[1:], factor[1:], strict=True):
                matrix.addr_(p_row, q_row)

    def add_products(self, ps: Sequence[Tensor], q: Tensor, flat: Tensor) -> None:
        """Each matrix in `flat` is increased by P^T Q."""
        for p, factor, matrix in zip(ps, self.qs(q), self.of(flat), strict=True):
            matrix.addmm_(p.t(), factor)

    def _chosen(self, flat: Tensor, gains: bool) -> list[Tensor]:
        pieces = zip(self._layout.pieces(flat), self._gains, strict=True)
        return [piece for (_, piece), gain in pieces if gain is gains]


def gains(shape: tuple[int, ...], r: int) -> bool:
    """Whether r (rows + columns) < rows x columns."""
    rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, 1)
    return r * (rows + columns) < rows * columns


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows whose span holds that of `rows`, of shape (r, length) with r <= length.

    Householder's QR, so rows of zeros or dependent ones are no trouble. Each row is first brought to a largest
    magnitude of 1, since squares of 1e30 overflow and those of denormals vanish.
    """
    size = rows.abs().amax(1, keepdim=True)
    q: Tensor = torch.linalg.qr((rows / size.masked_fill(size == 0, 1.0)).t()).Q
    return q.t()
