"""The k elements of largest magnitude, exactly, without a sort and with one pass over most of the vector.

Each block of neighbours is represented by its largest magnitude. At least k blocks have a peak of the k-th largest
peak or more, so at least k elements do: unlike a threshold from a random sample (Aji and Heafield 2017; Lin et al.
2018, section 5) this one never keeps too few, and at small densities it keeps a few percent too many. The exact choice
is made among those. Where the density is too large for blocks to help, sampled bounds narrow down the k-th largest.

On a CPU what is left to look at shrinks with what was found. On other devices the host would wait for every such size:
there all have sizes that are known beforehand, and the choice is the same.
"""

from __future__ import annotations

from math import isqrt
from types import ModuleType

import torch
from torch import Tensor

from dtrain.compressors.codecs import compiled

MIN_SHIFT, MAX_SHIFT = 5, 6
"""A block has 2^shift elements: fewer are slow to reduce, more leave many to choose among."""
BLOCKS_PER_KEPT = 2
"""At least so many blocks for each element kept, so that few blocks hold two of them."""
CHUNK = 1024 * 1024
"""Elements at a time, so that the second of two passes finds them in a cache."""
MAGNITUDE = 0x7FFFFFFF
"""All bits of a float32 but the sign: as integers they order magnitudes, infinity above every number."""
NAN = 0x7F800001
"""Above infinity."""
SAMPLE_STRIDE = 61
"""One in so many elements is looked at for bounds; a prime, since filters repeat with small periods."""
COMPILED_STRIDE = 191
"""The same for the compiled path, whose one bound may be rougher."""
SAMPLED_FROM = 64 * 1024
"""Elements from which on sampling is cheaper than a selection among all."""


def num_kept(density: float, numel: int) -> int:
    """max(1, round(density x numel)), and never more than there are."""
    return min(numel, max(1, round(density * numel)))


def largest(value: Tensor, k: int) -> Tensor:
    """The indices of the `k` largest magnitudes of a float32 vector: int64, of shape (k,), ascending.

    Of equal magnitudes the lowest indices are taken. A NaN counts as larger than infinity, so that none stays behind.
    """
    numel = value.numel()
    assert 0 < k <= numel, f"{k} of {numel}"
    if value.device.type != "cpu":
        return _largest_unseen(_magnitude(value), k)
    loops = compiled.sparse_loops_for(value)
    if loops is not None and numel >= SAMPLED_FROM:
        found_by_loop = _largest_compiled(loops, value, k)
        if found_by_loop is not None:
            return found_by_loop
    shift = min(MAX_SHIFT, (numel // (BLOCKS_PER_KEPT * k)).bit_length() - 1)
    if shift < MIN_SHIFT:
        return _top(_magnitude(value), k)
    end = numel >> shift << shift
    blocks = value[:end].view(-1, 1 << shift)
    peaks = torch.cat((_magnitude(_peaks(blocks)), _magnitude(value[end:])))  # each of the rest is a block of its own
    hot = _top(peaks, k)
    threshold = peaks[hot].amin()
    hot = hot[hot < len(blocks)]
    found = _where(blocks.index_select(0, hot).abs_().view(torch.int32).view(-1) >= threshold)
    row = found >> shift
    candidates = torch.cat((((hot[row] - row) << shift) + found, torch.arange(end, numel, device=value.device)))
    return candidates[_top(_magnitude(value[candidates]), k)]


def _largest_compiled(loops: ModuleType, value: Tensor, k: int) -> Tensor | None:
    """The same in one pass: what is above a bound from a sample, and the choice among that. None where it is too low.

    The bound is four standard deviations below what a random sample would have at the k-th largest.
    """
    sample = _magnitude(value[::COMPILED_STRIDE].contiguous())
    position = k * sample.numel() // value.numel()
    rank = position + 4 * isqrt(position) + 4
    if rank > sample.numel():
        return None
    least = sample.kthvalue(sample.numel() - rank + 1).values
    room = 2 * k + value.numel() // 32
    indices, magnitudes = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int32)
    count = loops.collect_large(value.numpy(), int(least), indices.numpy(), magnitudes.numpy())
    return indices[_top(magnitudes[:count], k)] if count >= k else None


def largest_among(value: Tensor, named: Tensor, k: int) -> Tensor:
    """The same of the elements that `named` names, int64 indices in any order, some of them twice; at least `k`."""
    if value.device.type != "cpu":
        return _largest_among_unseen(value, named, k)
    support: Tensor = named.unique()
    return support[largest(value[support], k)]


def _largest_among_unseen(value: Tensor, named: Tensor, k: int) -> Tensor:
    """The same without a look at any by the host."""
    is_named = torch.zeros_like(value, dtype=torch.int32).index_fill_(0, named, 1)
    return _largest_unseen((_magnitude(value) + 1).mul_(is_named), k)  # what is not named, below all that is


def _largest_unseen(magnitude: Tensor, k: int) -> Tensor:
    """Indices of the `k` largest integers, ascending, of equal ones the lowest, without a look at any by the host.

    The k blocks of the largest peaks, of equal ones the first, hold them all: what a block behind them has comes after
    each of their peaks.
    """
    numel = magnitude.numel()
    shift = min(MAX_SHIFT, (numel // (BLOCKS_PER_KEPT * k)).bit_length() - 1)
    if shift < MIN_SHIFT:
        return _top_unseen(magnitude, k)
    width = 1 << shift
    blocks = torch.nn.functional.pad(magnitude, (0, -numel % width), value=-1).view(-1, width)
    hot = _top_unseen(blocks.amax(1), k)
    candidates = blocks.index_select(0, hot).view(-1)
    found = _top_unseen(candidates, k)
    return (hot[found >> shift] << shift) + (found & (width - 1))


def _top_unseen(magnitude: Tensor, k: int) -> Tensor:
    """The same among all: no two keys are equal, so that their order is that of torch.topk on every device."""
    numel = magnitude.numel()
    keys = (magnitude.to(torch.int64) << 32) + torch.arange(numel - 1, -1, -1, device=magnitude.device)
    return keys.topk(k, sorted=False).indices.sort().values


def _magnitude(value: Tensor) -> Tensor:
    """Integers in the order of the magnitudes."""
    return (value.view(torch.int32) & MAGNITUDE).clamp_(max=NAN)


def _peaks(blocks: Tensor) -> Tensor:
    """Of each row, the element of largest magnitude; its sign may be lost."""
    high, low = torch.empty_like(blocks[:, 0]), torch.empty_like(blocks[:, 0])
    for part, high_part, low_part in zip(
        blocks.split(CHUNK // blocks.shape[1]),
        high.split(CHUNK // blocks.shape[1]),
        low.split(CHUNK // blocks.shape[1]),
        strict=True,
    ):
        torch.amax(part, 1, out=high_part)
        torch.amin(part, 1, out=low_part)
    return torch.maximum(high, low.neg_(), out=high)


def _top(magnitude: Tensor, k: int) -> Tensor:
    """Indices of the `k` largest integers, ascending; of equal ones the lowest."""
    threshold = _kth_largest(magnitude, k)
    at_least = _where(magnitude >= threshold)
    if at_least.numel() == k:
        return at_least
    above = _where(magnitude > threshold)
    ties = _where(magnitude == threshold)[: k - above.numel()]
    return torch.cat((above, ties)).sort().values


def _kth_largest(magnitude: Tensor, k: int) -> Tensor:
    """The `k`-th largest integer, by Floyd and Rivest's selection: between two bounds from a sample, if they hold."""
    numel = magnitude.numel()
    if numel >= SAMPLED_FROM:
        sample = magnitude[::SAMPLE_STRIDE]
        position = k * sample.numel() // numel
        margin = 4 * int(position**0.5) + 4  # four standard deviations and more
        if margin < position < sample.numel() - margin:
            bounds = sample.sort(descending=True).values
            high, low = bounds[position - margin], bounds[position + margin]
            inside = magnitude[(magnitude > low) & (magnitude <= high)]
            k_inside = k - int(torch.count_nonzero(magnitude > high))
            if 0 < k_inside <= inside.numel():
                magnitude, k, numel = inside, k_inside, inside.numel()
    return magnitude.kthvalue(numel - k + 1).values


def _where(chosen: Tensor) -> Tensor:
    """Indices of True, ascending."""
    return chosen.nonzero().view(-1)
