"""Which parameters of a bucket are matrices worth a product of two thin ones, and where everything lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from dtrain.exchange import Layout, Replicated

SMALLEST_NORM = 1e-37
"""Its reciprocal is a float32."""


@lru_cache(maxsize=64)
def matrices_of(layout: Layout, r: int) -> Matrices:
    """The same for the same layout, which comes again in each step."""
    return Matrices(layout, r)


class Matrices:
    """The parameters of `layout` that rank-`r` factors make smaller, as matrices of (shape[0], the rest); and `others`.

    Factors are stored by rows: P as (r, rows) and Q as (r, columns), so that P^T Q has the matrix's shape. `first` is
    the flat vector that holds all P, then all other parameters.
    """

    def __init__(self, layout: Layout, r: int) -> None:
        self._r, self._sizes, self._gains = r, layout.sizes, [gains(shape, r) for shape in layout.shapes]
        chosen = layout.keep(self._gains)
        self._rows = [shape[0] for shape in chosen.shapes]
        columns = [size // rows for size, rows in zip(chosen.sizes, self._rows, strict=True)]
        self._p_sizes, self._q_sizes = [r * rows for rows in self._rows], [r * count for count in columns]
        self._other_sizes = layout.keep([not yes for yes in self._gains]).sizes
        self.p_layout = Layout(chosen.names, tuple((r, rows) for rows in self._rows))
        self.q_layout = Layout(chosen.names, tuple((r, count) for count in columns))
        self.first_numel = sum(self._p_sizes) + sum(self._other_sizes)

    def of(self, flat: Tensor) -> list[Tensor]:
        """The matrices in a vector of the layout, as views."""
        parts = (part for part, gain in zip(flat.split(self._sizes), self._gains, strict=True) if gain)
        return [part.view(rows, -1) for part, rows in zip(parts, self._rows, strict=True)]

    def others(self, flat: Tensor) -> list[Tensor]:
        """The other parameters in a vector of the layout, as flat views."""
        return [part for part, gain in zip(flat.split(self._sizes), self._gains, strict=True) if not gain]

    def ps(self, first: Tensor) -> list[Tensor]:
        """Every P in `first`."""
        return [part.view(self._r, -1) for part in first[: sum(self._p_sizes)].split(self._p_sizes)]

    def others_in(self, first: Tensor) -> list[Tensor]:
        """The other parameters in `first`, as flat views."""
        return list(first[sum(self._p_sizes) :].split(self._other_sizes))

    def ps_of(self, flat: Tensor) -> list[Tensor]:
        """Every P in the vector of `p_layout`."""
        return [part.view(self._r, -1) for part in flat.split(self._p_sizes)]

    def qs(self, flat: Tensor) -> list[Tensor]:
        """Every Q in the vector of `q_layout`."""
        return [part.view(self._r, -1) for part in flat.split(self._q_sizes)]

    def put_products(self, ps: Sequence[Tensor], qs: Sequence[Tensor], flat: Tensor) -> None:
        """Each matrix in `flat` becomes P^T Q, element by element in the same order on every rank."""
        for p, q, matrix in zip(ps, qs, self.of(flat), strict=True):
            torch.outer(p[0], q[0], out=matrix)
            for p_row, q_row in zip(p[1:], q[1:], strict=True):
                matrix.addr_(p_row, q_row)


@dataclass(frozen=True, slots=True)
class Products:
    """What a rank contributed: P^T Q for each matrix, one factor with its sign turned; the others as they were."""

    matrices: Matrices
    ps: Sequence[Tensor]
    minus_qs: Sequence[Tensor]
    value: Tensor

    def subtract_from(self, residual: Tensor) -> None:
        """See `Contribution`. As sums with -Q, for which there is one operation."""
        for other, left in zip(self.matrices.others(self.value), self.matrices.others(residual), strict=True):
            left.sub_(other)
        for p, minus_q, matrix in zip(self.ps, self.minus_qs, self.matrices.of(residual), strict=True):
            matrix.addmm_(p.t(), minus_q)


def random_factors(layout: Layout, device: torch.device) -> Replicated:
    """Normal numbers of shape (r, length) for each parameter, drawn by its name: the same on every rank."""
    value = torch.empty(layout.numel, device=device)
    for name, piece in layout.pieces(value):
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
        piece.copy_(torch.randn(piece.shape, generator=torch.Generator().manual_seed(seed)))
    return Replicated(value, layout)


def where_found(new: Tensor, old: Replicated) -> Replicated:
    """The rows of new factors, in a vector as the old ones are, and the old ones where a new row carries nothing."""
    row = _row_of_element(old.layout, new.device)
    num_rows = sum(r for r, _ in old.layout.shapes)
    found = torch.zeros(num_rows, dtype=torch.int32, device=new.device).index_add_(0, row, (new != 0).to(torch.int32))
    return old._replace(value=torch.where(found[row] > 0, new, old.value))


@lru_cache(maxsize=64)
def _row_of_element(layout: Layout, device: torch.device) -> Tensor:
    """Of factors in a vector: which row each element belongs to, counted over all of them."""
    lengths = torch.tensor([length for r, length in layout.shapes for _ in range(r)], dtype=torch.int64)
    return torch.arange(len(lengths)).repeat_interleave(lengths).to(device)


def gains(shape: tuple[int, ...], r: int) -> bool:
    """Whether r (rows + columns) < rows x columns."""
    rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, 1)
    return r * (rows + columns) < rows * columns


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows whose span holds that of `rows`, of shape (r, length) with r <= length; one row of zeros stays.

    Householder's QR, so rows of zeros or dependent ones are no trouble. Each row is first brought to a largest
    magnitude of 1, since squares of 1e30 overflow and those of denormals vanish. One row needs its norm only.
    """
    if len(rows) == 1:
        norm: Tensor = torch.linalg.vector_norm(rows, dtype=torch.float64)
        return rows * norm.clamp_min_(SMALLEST_NORM).reciprocal_()
    size = rows.abs().amax(1, keepdim=True)
    q: Tensor = torch.linalg.qr((rows / size.masked_fill(size == 0, 1.0)).t()).Q
    return q.t()
