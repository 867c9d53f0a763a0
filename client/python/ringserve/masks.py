"""Masks: which keys a query sees. Conditions that are joined by `&` must all hold.

    masks.causal() & masks.window(left=1023) & masks.documents([100, 28])

The words are those of the Mask message (ringserve/v1/attention.proto): p = q_offset + i is the key position of query i.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _protocol
from .errors import InvalidArgumentError

# More are surely no structure of bands, and hardly fit into a request.
_MOST_SLICES = 1 << 16


@dataclass(frozen=True)
class Slice:
    """Query q sees key k iff both lie in the ranges and lo <= k - q <= hi; None: unbounded."""

    q_begin: int
    q_end: int
    k_begin: int
    k_end: int
    lo: int | None = None
    hi: int | None = None


@dataclass(frozen=True)
class Blocks:
    """Query i sees key j iff visible[i // q_block][j // kv_block]."""

    q_block: int
    kv_block: int
    bits: bytes  # row-major, least significant bit first; each block row starts on a byte


@dataclass(frozen=True)
class Mask:
    """Conditions, all of which a pair of query and key must pass; none: full attention.

    The functions of this module make masks of one condition; `a & b` has those of both.
    """

    causal: bool = False  # j <= p
    q_offset: int | None = None  # key position of query 0; default 0
    bottom_right: bool = False  # the last query sits on the last key
    window: tuple[int | None, int | None] | None = None  # p - left <= j <= p + right; None: open
    sinks: int = 0  # keys j < sinks pass the window in any case
    prefix: int = 0  # keys j < prefix pass causal in any case
    documents: tuple[int, ...] | None = None  # lengths, of queries and of keys
    kv_documents: tuple[int, ...] | None = None  # lengths of keys, where they differ
    blocks: Blocks | None = None
    slices: tuple[Slice, ...] | None = None  # disjoint; an empty tuple: nobody sees anything

    def __and__(self, other: Mask) -> Mask:
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(Mask):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if theirs == field.default:
                continue
            if ours not in (field.default, theirs):
                raise InvalidArgumentError(f"both masks have {field.name}, {ours} and {theirs}: they cannot be joined")
            changes[field.name] = theirs
        return dataclasses.replace(self, **changes)

    def to_message(self) -> Any:
        """The Mask message."""
        message = _protocol.Mask(causal=self.causal, sinks=self.sinks, prefix=self.prefix)
        if self.q_offset is not None and self.bottom_right:
            raise InvalidArgumentError("q_offset and bottom_right are both given: one of them aligns queries and keys")
        if self.q_offset is not None:
            message.q_offset = self.q_offset
        if self.bottom_right:
            message.bottom_right = True
        if self.window is not None:
            message.window.SetInParent()
            for side, value in zip(("left", "right"), self.window):
                if value is not None:
                    setattr(message.window, side, value)
        if self.kv_documents is not None and self.documents is None:
            raise InvalidArgumentError("kv_documents are given without documents")
        if self.documents is not None:
            message.documents.SetInParent()
            message.documents.q_lengths.extend(self.documents)
            message.documents.kv_lengths.extend(self.kv_documents or ())
        if self.blocks is not None:
            message.blocks.q_block = self.blocks.q_block
            message.blocks.kv_block = self.blocks.kv_block
            message.blocks.bits = self.blocks.bits
        self._add_slices(message)
        return message

    def _add_slices(self, message: Any) -> None:
        for band in self.slices or ():
            message.slices.add(**{name: value for name, value in dataclasses.asdict(band).items() if value is not None})
        if self.slices == ():
            # No slices would mean no condition. A document of no positions leaves all outside of every document.
            message.ClearField("documents")
            message.documents.q_lengths.append(0)


def full() -> Mask:
    """Every query sees every key."""
    return Mask()


def causal(*, q_offset: int | None = None, bottom_right: bool = False) -> Mask:
    """j <= p; by default query 0 sits on key 0."""
    return Mask(causal=True, q_offset=q_offset, bottom_right=bottom_right)


def window(left: int | None = None, right: int | None = None, *, sinks: int = 0) -> Mask:
    """p - left <= j <= p + right, and keys j < sinks in any case. None: that side is open."""
    return Mask(window=(left, right), sinks=sinks)


def prefix(length: int) -> Mask:
    """Causal, but that the first `length` keys are seen by all."""
    return Mask(causal=True, prefix=length)


def documents(lengths: Iterable[int], kv_lengths: Iterable[int] | None = None) -> Mask:
    """Packed documents: query and key are in the same one. What is past their sum is padding."""
    return Mask(documents=tuple(lengths), kv_documents=None if kv_lengths is None else tuple(kv_lengths))


def blocks(visible: Any, q_block: int, kv_block: int) -> Mask:
    """`visible` is a boolean [ceil(q_len / q_block), ceil(kv_len / kv_block)]."""
    array = np.asarray(visible)
    if array.ndim != 2 or array.dtype != np.bool_:
        raise InvalidArgumentError(f"visible is {array.dtype} of {array.ndim} dimensions: must be bool of 2")
    return Mask(blocks=Blocks(q_block, kv_block, np.packbits(array, axis=1, bitorder="little").tobytes()))


def slices(bands: Sequence[Slice]) -> Mask:
    """Disjoint bands; none: nobody sees anything."""
    return Mask(slices=tuple(bands))


def dense(visible: Any) -> Mask:
    """The mask of a boolean [queries, keys], recognised as bands: exact, whatever the mask.

    Bands have edges that run straight down or along a diagonal, as those of causal, window, document, padding and
    block masks do. InvalidArgumentError where more than 65,536 of them would be needed.
    """
    array = np.asarray(visible)
    if array.ndim != 2 or array.dtype != np.bool_:
        raise InvalidArgumentError(f"visible is {array.dtype} of {array.ndim} dimensions: must be bool of 2")
    if array.all():
        return full()
    found: list[Slice] = []
    group: _Group | None = None
    for row in range(array.shape[0]):
        edges = np.diff(array[row].view(np.int8), prepend=np.int8(0), append=np.int8(0))
        begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        if group is not None and group.take(begins, ends):
            continue
        if group is not None:
            found.extend(group.slices(row))
        if len(found) > _MOST_SLICES:
            raise InvalidArgumentError(f"this mask is no structure of bands: it takes more than {_MOST_SLICES} of them")
        group = _Group(row, begins, ends)
    if group is not None:
        found.extend(group.slices(array.shape[0]))
    return slices(found)


class _Group:
    """Consecutive queries with the same number of runs of keys, whose edges each stay or move on by one key a query."""

    def __init__(self, row: int, begins: Any, ends: Any) -> None:
        self._row = row
        self._first = self._last = (begins, ends)
        self._moves: list[Any] = [None, None]  # of begins and of ends, by run; None: only one query so far

    def take(self, begins: Any, ends: Any) -> bool:
        """Whether the next query's runs continue the group; it then has them."""
        if len(begins) != len(self._last[0]):
            return False
        moves = [begins - self._last[0], ends - self._last[1]]
        for move, before in zip(moves, self._moves):
            if ((move != 0) & (move != 1)).any() or (before is not None and (move != before).any()):
                return False
        self._moves, self._last = moves, (begins, ends)
        return True

    def slices(self, end: int) -> list[Slice]:
        begin_moves, end_moves = (np.zeros_like(self._first[0]) if m is None else m for m in self._moves)
        return [
            Slice(self._row, end, int(first), int(last),
                  lo=int(first) - self._row if begin_move else None,
                  hi=int(first_end) - 1 - self._row if end_move else None)
            for first, first_end, last, begin_move, end_move in zip(
                self._first[0], self._first[1], self._last[1], begin_moves, end_moves)
        ]
