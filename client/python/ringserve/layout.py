"""Layouts: which rank holds which positions of a sequence; the balancers that make them, and how a tensor is cut by one.

`contiguous`, `head_tail` and `per_document` give what the service gives for these balancers without weights, and
PyTorch's permutations where PyTorch accepts the lengths. PTRR's layout, and any other, comes from `Client.plan`.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._tensors import is_torch
from .errors import InvalidArgumentError

Segment = tuple[int, int]  # positions [begin, end)
RowLayout = tuple[tuple[Segment, ...], ...]  # of one batch row: by rank, what it holds, in this order


@dataclass(frozen=True)
class SequenceLayout:
    """One RowLayout for all batch rows, or one per batch row. Every position belongs to exactly one rank."""

    rows: tuple[RowLayout, ...]

    @property
    def shared(self) -> bool:
        return len(self.rows) == 1

    @property
    def ranks(self) -> int:
        return len(self.rows[0])

    def row(self, batch_row: int) -> RowLayout:
        return self.rows[0 if self.shared else batch_row]


@dataclass(frozen=True)
class Layout:
    """Where queries (and out, lse) and keys (and values) live."""

    q: SequenceLayout
    kv: SequenceLayout


def _append(segments: list[Segment], begin: int, end: int) -> None:
    if begin == end:
        return
    if segments and segments[-1][1] == begin:
        segments[-1] = (segments[-1][0], end)
    else:
        segments.append((begin, end))


def _frozen(row: list[list[Segment]]) -> SequenceLayout:
    return SequenceLayout((tuple(tuple(segments) for segments in row),))


def _check(length: int, ranks: int) -> None:
    if length < 1 or ranks < 1:
        raise InvalidArgumentError(f"length is {length} and ranks is {ranks}: both must be at least 1")


def contiguous(length: int, ranks: int) -> SequenceLayout:
    """torch.chunk: ceil(length / ranks) positions each, the last short or empty."""
    _check(length, ranks)
    size = -(-length // ranks)
    row: list[list[Segment]] = [[] for _ in range(ranks)]
    for rank in range(ranks):
        _append(row[rank], min(length, rank * size), min(length, (rank + 1) * size))
    return _frozen(row)


def head_tail(length: int, ranks: int) -> SequenceLayout:
    """2 * ranks pieces, rank r holds pieces r and 2 * ranks - 1 - r; sizes differ by at most one."""
    return per_document((), length, ranks)


def per_document(documents: Iterable[int], length: int, ranks: int) -> SequenceLayout:
    """Head-tail inside each document; where one does not divide, its longer pieces follow on those of the one before.

    Positions past the documents are cut like one more document.
    """
    _check(length, ranks)
    lengths = list(documents)
    rest = length - sum(lengths)
    if rest < 0 or min(lengths, default=0) < 0:
        raise InvalidArgumentError(f"documents {lengths}: must be lengths that sum to at most {length}")
    row: list[list[Segment]] = [[] for _ in range(ranks)]
    pieces, first_longer, begin = 2 * ranks, 0, 0
    for document in [*lengths, rest]:
        size, longer = divmod(document, pieces)
        for piece in range(pieces):
            end = begin + size + (1 if (piece - first_longer) % pieces < longer else 0)
            _append(row[piece if piece < ranks else pieces - 1 - piece], begin, end)
            begin = end
        first_longer = (first_longer + longer) % pieces
    return _frozen(row)


def permutation(row: RowLayout) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which position stands at place i where the ranks' parts stand one after the other (`indices` in PyTorch)."""
    parts = [np.arange(begin, end, dtype=np.int64) for segments in row for begin, end in segments]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def inverse_permutation(row: RowLayout) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each position stands in `permutation` (`restore` in PyTorch)."""
    positions = permutation(row)
    inverse = np.empty_like(positions)
    inverse[positions] = np.arange(len(positions))
    return inverse


def _length(row: RowLayout) -> int:
    return sum(end - begin for segments in row for begin, end in segments)


def _concatenate(parts: Sequence[Any], like: Any, dim: int) -> Any:
    if is_torch(like):
        import torch

        return torch.cat(list(parts), dim)
    return np.concatenate(parts, dim)


def _cut(tensor: Any, dim: int, begin: int, end: int) -> Any:
    return tensor[(slice(None),) * dim + (slice(begin, end),)]


def _check_dims(tensor: Any, layout: SequenceLayout, dim: int, batch_dim: int, length: int | None) -> int:
    dims = tensor.ndim
    if not -dims <= dim < dims:
        raise InvalidArgumentError(f"dim is {dim}: the tensor has {dims} dimensions")
    dim %= dims
    if not layout.shared and (not 0 <= batch_dim < dims or batch_dim == dim or
                              tensor.shape[batch_dim] != len(layout.rows)):
        raise InvalidArgumentError(f"the layout has {len(layout.rows)} batch rows: dimension {batch_dim} of a tensor of "
                                   f"shape {tuple(tensor.shape)} cannot be them")
    if length is not None and tensor.shape[dim] != length:
        raise InvalidArgumentError(f"dimension {dim} has {tensor.shape[dim]} positions: the layout has {length}")
    return dim


def shard(tensor: Any, layout: SequenceLayout, rank: int, *, dim: int, batch_dim: int = 0) -> Any:
    """The part of `tensor` (numpy or PyTorch) that `rank` holds, where `dim` is the sequence.

    Where the layout differs from batch row to batch row, `batch_dim` is the batch, and InvalidArgumentError says that
    the rank holds more of one row than of another: then shard row by row.
    """
    dim = _check_dims(tensor, layout, dim, batch_dim, _length(layout.rows[0]))
    if not 0 <= rank < layout.ranks:
        raise InvalidArgumentError(f"rank is {rank}: the layout has {layout.ranks}")
    if layout.shared:
        segments = layout.rows[0][rank]
        if not segments:
            return _cut(tensor, dim, 0, 0)
        return _concatenate([_cut(tensor, dim, begin, end) for begin, end in segments], tensor, dim)
    held = {sum(end - begin for begin, end in row[rank]) for row in layout.rows}
    if len(held) > 1:
        raise InvalidArgumentError(f"rank {rank} holds {min(held)} to {max(held)} positions of the batch rows: "
                                   "shard each row by itself")
    parts = [shard(_cut(tensor, batch_dim, i, i + 1), SequenceLayout((row,)), rank, dim=dim)
             for i, row in enumerate(layout.rows)]
    return _concatenate(parts, tensor, batch_dim)


def unshard(shards: Sequence[Any], layout: SequenceLayout, *, dim: int, batch_dim: int = 0) -> Any:
    """The whole tensor of all ranks' shards, in the order of the ranks: what `shard` undoes."""
    if len(shards) != layout.ranks:
        raise InvalidArgumentError(f"{len(shards)} shards are given: the layout has {layout.ranks} ranks")
    dim = _check_dims(shards[0], layout, dim, batch_dim, None)
    joined = _concatenate(shards, shards[0], dim)
    _check_dims(joined, layout, dim, batch_dim, _length(layout.rows[0]))
    for rank, part in enumerate(shards):
        held = sum(end - begin for begin, end in layout.rows[0][rank])
        if part.shape[dim] != held:
            raise InvalidArgumentError(f"shard {rank} has {part.shape[dim]} positions: the layout says {held}")
    if layout.shared:
        return _restore(joined, layout.rows[0], dim)
    rows = [_restore(_cut(joined, batch_dim, i, i + 1), row, dim) for i, row in enumerate(layout.rows)]
    return _concatenate(rows, joined, batch_dim)


def _restore(joined: Any, row: RowLayout, dim: int) -> Any:
    order, place = [], 0
    for segments in row:
        for begin, end in segments:
            order.append((begin, place, place + end - begin))
            place += end - begin
    return _concatenate([_cut(joined, dim, begin, end) for _, begin, end in sorted(order)], joined, dim)
