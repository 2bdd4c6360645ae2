"""Tensors of small integers, coded with contexts: k-means codes and quantised weights, once they leave their stage.

Of a weight it is asked whether it is zero, its sign, and whether its magnitude reaches each of some edges; what is left
open between two edges is coded by how often it came before. The probability of a yes is logistic in what is known of
the weight (`contexts`), with coefficients that the encoder fits for each question and puts in the stream. Both are
small integers, so that sums of their products are exact in float32 whatever the order of addition (see `coder`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dtrain.pack.coder import Coder, Decoder, Floats, Ints
from dtrain.pack.contexts import FEATURE_UNIT, Features, Grid, Known, passes
from dtrain.pack.tensor import Tensor

MAX_LEVEL = 4095
_LEVEL_BITS = 12
_NUM_EDGES = 4
_WEIGHT_UNIT, _WEIGHT_MAX = 16, 1023
_FIT_SIZE = 1 << 18  # weights that a fit looks at


def are_levels(tensor: Tensor) -> bool:
    """Whether this codec has a form for it."""
    return (
        tensor.dtype == "I32" and tensor.numel > 1 and int(np.abs(tensor.integers.astype(np.int64)).max()) <= MAX_LEVEL
    )


def code_levels(coder: Coder, shape: Sequence[int], known: Ints | None, fit: Fit | None = None) -> Ints:
    """Integers from -MAX_LEVEL to MAX_LEVEL, of `shape`, two at least. An encoder fits its questions to them unless
    given `fit`.

    Raises ValueError for a stream that no encoder writes, and for a `fit` that has no form for these levels.
    """
    grid = Grid.of(shape)
    levels = np.zeros(grid.size, np.int32) if known is None else known.reshape(grid.rows * grid.columns, -1).T.ravel()
    if known is not None and fit is not None and np.abs(levels).max() > fit.largest:
        raise ValueError("questions for smaller levels: not packed as this dtrain packs, or altered")
    model = code_fit(coder, shape, None if known is None else fit or _fit(grid, levels))
    if not model.edges:
        return levels.reshape(shape)
    counts = [np.ones((2, high - low), np.int64) for low, high in model.classes]
    for here, features in passes(grid, levels):
        coded = _code_pass(coder, model, counts, features, None if known is None else levels[here])
        if known is None:
            levels[here] = coded
    return levels.reshape(grid.taps, -1).T.reshape(shape)


@dataclass(frozen=True)
class Fit:
    """`edges`: ascending, from 1. `weights`: a row for "positive?", and for each k one for "reaches edge k?"."""

    edges: tuple[int, ...]
    largest: int
    weights: Features

    @property
    def classes(self) -> list[tuple[int, int]]:
        """[low, high) of the magnitudes between edges."""
        return list(zip(self.edges, (*self.edges[1:], self.largest + 1), strict=True))


def _code_pass(coder: Coder, model: Fit, counts: list[NDArray[np.int64]], features: Known, known: Ints | None) -> Ints:
    """The levels of one pass; `counts` learns from them."""

    def ask(features: Features, weights: Features, answers: NDArray[np.bool_] | None) -> Ints:
        return coder.bits(_probabilities(features @ weights), None if answers is None else answers.astype(np.int32))

    for_sign, for_zero, *for_edges = model.weights
    levels = ask(features.for_zero(), for_zero, None if known is None else known != 0).copy()
    there = np.flatnonzero(levels)
    values = None if known is None else known[there]
    sizes = None if values is None else np.abs(values)
    positive = ask(features.for_sign(there), for_sign, None if values is None else values > 0)
    signs = 2 * positive - 1
    for_size = features.for_size(there, signs)
    still = np.arange(len(there))  # those whose magnitude is not known to be below an edge
    for index, (low, high) in enumerate(model.classes):
        within = still
        if index < len(for_edges):
            reached = ask(for_size[still], for_edges[index], None if sizes is None else sizes[still] >= high)
            within, still = still[reached == 0], still[reached == 1]
        for sign in (0, 1):
            chosen = within[positive[within] == sign]
            offsets = coder.symbols(counts[index][sign], len(chosen), None if sizes is None else sizes[chosen] - low)
            counts[index][sign] += 2 * np.bincount(offsets, minlength=high - low)
            levels[there[chosen]] = signs[chosen] * (low + offsets)
    return levels


def _probabilities(sums: Features) -> Floats:
    """Of a yes, from the sums of products."""
    index = np.clip(np.floor(sums / _TABLE_STEP), -_TABLE_SIZE, _TABLE_SIZE - 1).astype(np.int64)
    likely: Floats = _TABLE[index + _TABLE_SIZE]
    return likely


def _logistic_table() -> Floats:
    """1 / (1 + exp(-x)) for _TABLE_SIZE values on either side of 0.

    exp is a power by squaring, within 3% where it matters least: a library's exp differs between machines.
    """
    logits = (np.arange(-_TABLE_SIZE, _TABLE_SIZE) + 0.5) * (_TABLE_STEP / (FEATURE_UNIT * _WEIGHT_UNIT))
    power = 1 - logits / 4096
    for _ in range(12):
        power = power * power
    return 1 / (1 + power)


_TABLE_SIZE = 2048
_TABLE_STEP = 4  # of a sum of products: 1/128 of a logit, so the table goes to 16
_TABLE = _logistic_table()


# what the encoder fits


def code_fit(coder: Coder, shape: Sequence[int], fitted: Fit | None) -> Fit:
    """The questions for levels of `shape`, through the stream."""
    num_edges = coder.number(3, None if fitted is None else len(fitted.edges))
    if num_edges == 0:
        return _ZEROS
    numbers = [None] * num_edges if fitted is None else [*fitted.edges[1:], fitted.largest]
    *edges, largest = [coder.number(_LEVEL_BITS, number) for number in numbers]
    edges = [1, *edges]
    if any(low >= high for low, high in zip(edges, [*edges[1:], largest + 1], strict=True)):
        raise ValueError("edges of magnitudes that do not ascend")
    matrix = (num_edges + 1, Grid.of(shape).num_features)
    symbols = None if fitted is None else fitted.weights.ravel().astype(np.int32) + _WEIGHT_MAX
    symbols = coder.symbols(_WEIGHT_COUNTS, math.prod(matrix), symbols)
    return Fit(tuple(edges), largest, (symbols - _WEIGHT_MAX).astype(np.float32).reshape(matrix))


def read_fit(shape: Sequence[int], data: bytes) -> Fit:
    """The questions that levels of `shape` were coded with. Raises ValueError for a stream that no encoder writes."""
    return code_fit(Decoder(data), shape, None)


_ZEROS = Fit((), 0, np.zeros((0, 0), np.float32))


_WEIGHT_COUNTS = (1 << 30) // (8 + np.abs(np.arange(-_WEIGHT_MAX, _WEIGHT_MAX + 1, dtype=np.int64))) ** 2


def _fit(grid: Grid, levels: Ints) -> Fit:
    """Edges that part the magnitudes evenly, and the weights that predict best."""
    if not levels.any():
        return _ZEROS
    stride = -(-grid.size // _FIT_SIZE)
    samples = [
        (levels[here[::stride]], known.sizes[::stride], known.signed[::stride]) for here, known in passes(grid, levels)
    ]
    values, sizes, signed = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    known = Known(sizes, signed)
    all_magnitudes = np.abs(levels[levels != 0])
    quantiles = np.quantile(all_magnitudes, np.arange(1, _NUM_EDGES) / _NUM_EDGES, method="lower")
    largest = int(all_magnitudes.max())
    edges = sorted({1, *(int(q) + 1 for q in quantiles if q < largest)})
    there = np.flatnonzero(values)
    magnitudes = np.abs(values[there])
    weights = [
        _regress(known.for_sign(there), values[there] > 0),
        _regress(known.for_zero(), values != 0),
    ]
    aligned = known.for_size(there, np.sign(values[there]))
    for low, high in pairwise(edges):
        asked = magnitudes >= low
        weights.append(_regress(aligned[asked], magnitudes[asked] >= high))
    return Fit(tuple(edges), largest, np.stack(weights))


def _regress(features: Features, answers: NDArray[np.bool_]) -> Features:
    """Logistic regression by Newton's method, with a unit Gaussian prior, rounded to what the stream holds."""
    inputs = features.astype(np.float64) / FEATURE_UNIT
    weights = np.zeros(inputs.shape[1])
    for _ in range(8):
        likely = 1 / (1 + np.exp(-np.clip(inputs @ weights, -16, 16)))
        slope = inputs.T @ (answers - likely) - weights
        curvature = (inputs * (likely * (1 - likely))[:, None]).T @ inputs + np.eye(len(weights))
        step = np.linalg.solve(curvature, slope)
        weights += step
        if np.abs(step).max() < 0.25 / _WEIGHT_UNIT:
            break
    return np.clip(np.rint(weights * _WEIGHT_UNIT), -_WEIGHT_MAX, _WEIGHT_MAX).astype(np.float32)
