"""What is known of a weight before it is coded: the contexts of `levels`.

Its size and sign can be told, a little, from weights that are known already: those of its output channel (row), of its
input channel (column), of its kernel, and of the two filters before. So a tensor (rows, columns, taps) is coded in
passes, each of one tap and of the positions with one (row + column) mod P. All weights of a pass are coded with the
same knowledge, so everything is arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtrain.pack.coder import Floats, Ints

Features = NDArray[np.float32]
Places = NDArray[np.int64]

FEATURE_UNIT, _FEATURE_MAX = 32, 255  # an integer that stands for 1.0, and the largest
_LEAST_PASS = 128  # weights in a pass, at least, on average: bounds the time of a tensor
_PRIOR = 4.0  # weights' worth of belief that a row or a column is like the others
_PASS_SIZE = 1 << 19  # weights in a pass of a large tensor, about: bounds the memory


@dataclass(frozen=True)
class Grid:
    """A tensor seen as (rows, columns, taps), with `width` taps in a line of the kernel."""

    rows: int
    columns: int
    taps: int
    width: int

    @classmethod
    def of(cls, shape: Sequence[int]) -> Grid:
        rows, columns, *kernel = (*shape, 1, 1)[: max(2, len(shape))]
        taps = math.prod(kernel)
        whole = cls(rows, columns, taps, kernel[-1] if kernel else 1)
        if taps * whole.phases * _LEAST_PASS > whole.size:
            return cls(rows, columns * taps, 1, 1)
        return whole

    @property
    def size(self) -> int:
        return self.rows * self.columns * self.taps

    @property
    def phases(self) -> int:
        """The P of this module's docstring."""
        usual = 8 if self.taps == 1 else 2 if self.taps <= 9 else 1
        return max(1, min(usual, self.size // _LEAST_PASS), self.rows * self.columns // _PASS_SIZE)

    @property
    def num_features(self) -> int:
        return sum(_NUM_FEATURES[self.taps > 1])


@dataclass(frozen=True)
class Known:
    """Features (weights, features): of magnitudes, and of signed values (positive: a positive weight is likely)."""

    sizes: Features
    signed: Features

    def for_zero(self) -> Features:
        return np.concatenate([self.sizes, np.abs(self.signed)], axis=1)

    def for_sign(self, there: Places) -> Features:
        return np.concatenate([np.zeros_like(self.sizes[there]), self.signed[there]], axis=1)

    def for_size(self, there: Places, signs: Ints) -> Features:
        return np.concatenate([self.sizes[there], self.signed[there] * signs[:, None].astype(np.float32)], axis=1)


_NUM_FEATURES = {False: (4, 5), True: (7, 10)}  # without and with a kernel: of sizes, signed


def passes(grid: Grid, levels: Ints) -> Iterator[tuple[Places, Known]]:
    """Positions in `levels` (taps, rows x columns) of each pass, and what is known of them.

    The caller fills `levels` there before it asks for the next.
    """
    plane = grid.rows * grid.columns
    values = levels.reshape(grid.taps, plane)
    whole, by_row, by_column = _Sums(1), _Sums(grid.rows), _Sums(grid.columns)
    kernel = _Sums(plane if grid.taps > 1 else 0)
    for tap in range(grid.taps):
        by_tap = _Sums(grid.columns)
        above = np.zeros(plane + 2 * grid.columns, np.int32)  # what is known of this tap, below two rows of zeros
        for phase in range(grid.phases):
            part = _part(grid, phase)
            if len(part) == 0:
                continue
            row, column = part // grid.columns, part % grid.columns
            scale = float((whole.sizes[0] + 0.5) / (whole.counts[0] + 1))
            one, two = above[part + grid.columns], above[part]
            pair = (np.abs(one) + np.abs(two) + scale) / ((min(phase, 2) + 1) * scale)
            sizes = [
                np.ones(len(part)),
                by_row.level(scale, _PRIOR, row),
                by_column.level(scale, _PRIOR, column),
                _log2(pair),
            ]
            signed = [
                np.ones(len(part)),
                by_row.tendency(scale, row),
                by_column.tendency(scale, column),
                one / (np.abs(one) + scale),
                two / (np.abs(two) + scale),
            ]
            if grid.taps > 1:
                around = [
                    values[tap - step, part] if there else np.zeros(len(part), np.int32)
                    for step, there in _neighbours(tap, grid.width)
                ]
                left, up, up_left, up_right = (np.abs(value) for value in around)
                near = (left + up + 0.5 * (up_left + up_right) + 0.3 * scale) / (3 * scale)
                sizes += [by_tap.level(scale, _PRIOR, column), kernel.level(scale, 1.0, part), _log2(near)]
                signed += [kernel.tendency(scale, part), *(value / (np.abs(value) + scale) for value in around)]
            here = tap * plane + part
            yield here, Known(_integers(sizes), _integers(signed))
            coded = levels[here]
            above[part + 2 * grid.columns] = coded
            for sums, groups in ((whole, np.zeros_like(part)), (by_row, row), (by_column, column), (by_tap, column)):
                sums.add(groups, coded)
            if grid.taps > 1:
                kernel.add_each(part, coded)


def _part(grid: Grid, phase: int) -> Places:
    """Places in the plane with (row + column) mod phases == phase."""
    if grid.columns < grid.phases:  # not each row has one, and each phases rows together have one of each column
        row = np.sort((phase - np.arange(grid.columns)) % grid.phases) + np.arange(0, grid.rows, grid.phases)[:, None]
        row = row[row < grid.rows]
        return row * grid.columns + (phase - row) % grid.phases
    row = np.arange(grid.rows)[:, None]
    column = (phase - row) % grid.phases + np.arange(0, grid.columns, grid.phases)
    return (row * grid.columns + column)[column < grid.columns]


def _neighbours(tap: int, width: int) -> list[tuple[int, bool]]:
    """Left, up, up-left, up-right of a tap: how many taps back, and whether the kernel has it."""
    line, place = divmod(tap, width)
    return [
        (1, place > 0),
        (width, line > 0),
        (width + 1, line > 0 and place > 0),
        (width - 1, line > 0 and place + 1 < width),
    ]


class _Sums:
    """Of groups of weights: how many are known, the sum of their magnitudes, and their sum. Exact: all are integers."""

    def __init__(self, groups: int) -> None:
        self.counts, self.sizes, self.sums = np.zeros((3, groups))

    def add(self, groups: Places, values: Ints) -> None:
        size = len(self.counts)
        if len(groups) < size:  # else a tensor of many rows takes time for all of them in each pass
            for sums, added in ((self.counts, 1.0), (self.sizes, np.abs(values)), (self.sums, values)):
                np.add.at(sums, groups, np.asarray(added, np.float64))
            return
        self.counts += np.bincount(groups, minlength=size)
        self.sizes += np.bincount(groups, np.abs(values), size)
        self.sums += np.bincount(groups, values, size)

    def add_each(self, groups: Places, values: Ints) -> None:
        """As `add`, of one weight a group."""
        self.counts[groups] += 1
        self.sizes[groups] += np.abs(values)
        self.sums[groups] += values

    def level(self, scale: float, prior: float, groups: Places) -> Floats:
        """log2 of the mean magnitude over `scale`, of each of `groups`."""
        if len(groups) > len(self.counts):
            return self.level(scale, prior, np.arange(len(self.counts)))[groups]
        return _log2((self.sizes[groups] + prior * scale) / ((self.counts[groups] + prior) * scale))

    def tendency(self, scale: float, groups: Places) -> Floats:
        """From -1, all are negative, to 1; of each of `groups`."""
        if len(groups) > len(self.counts):
            return self.tendency(scale, np.arange(len(self.counts)))[groups]
        tendency: Floats = self.sums[groups] / (self.sizes[groups] + _PRIOR * scale)
        return tendency


def _log2(x: Floats) -> Floats:
    """Nearly: linear between powers of two, which makes it exact arithmetic."""
    mantissa, exponent = np.frexp(x)
    logarithm: Floats = exponent + 2 * mantissa - 2
    return logarithm


def _integers(features: list[Floats]) -> Features:
    integers = np.rint(np.stack(features, axis=1) * FEATURE_UNIT)
    return np.clip(integers, -_FEATURE_MAX, _FEATURE_MAX).astype(np.float32)
