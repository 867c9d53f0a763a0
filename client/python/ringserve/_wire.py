"""Attend's messages that carry tensor bytes, written and read by hand: protobuf's own way copies each byte twice more."""
from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

from ._protocol import CHUNK_BYTES, AttendResponse, TensorId
from .errors import InternalError

# Tags: field number * 8 + wire type (0 varint, 1 fixed64, 2 bytes, 5 fixed32).
_CHUNKS = 2 * 8 + 2  # in AttendRequest and AttendResponse
_TENSOR, _OFFSET, _DATA = 1 * 8, 2 * 8, 3 * 8 + 2  # in Chunk


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _chunk_head(tensor: int, offset: int, size: int) -> bytes:
    head = b"%c%b%c%b%c%b" % (_TENSOR, _varint(tensor), _OFFSET, _varint(offset), _DATA, _varint(size))
    return b"%c%b%b" % (_CHUNKS, _varint(len(head) + size), head)


def upload_messages(uploads: Sequence[tuple[int, memoryview]]) -> Iterator[bytes]:
    """The AttendRequests after the header: each filled with chunks across tensors, so that a small request is one."""
    parts: list[bytes | memoryview] = []
    room = CHUNK_BYTES
    for tensor, view in uploads:
        at = 0
        while at < len(view):
            size = min(room, len(view) - at)
            parts += (_chunk_head(tensor, at, size), view[at:at + size])
            at += size
            room -= size
            if room == 0:
                yield b"".join(parts)
                parts, room = [], CHUNK_BYTES
    if parts:
        yield b"".join(parts)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
        if shift >= 70:
            raise ValueError("a varint has more than ten bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(tag, value) of each field: a number, or a view of its bytes. IndexError or ValueError: malformed."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            yield tag, value
            continue
        size, at = {1: (8, at), 5: (4, at)}.get(kind) or (_read_varint(data, at) if kind == 2 else (-1, at))
        if not 0 <= size <= len(data) - at:
            raise ValueError(f"a field of wire type {kind} goes past the end")
        yield tag, data[at:at + size]
        at += size


class _Coverage:
    """Which bytes of a tensor have come; each must come once."""

    def __init__(self, size: int) -> None:
        self.size = self.missing = size
        self._begins: list[int] = []  # of disjoint ranges that do not touch, ascending, and their ends
        self._ends: list[int] = []

    def add(self, begin: int, end: int) -> None:
        if not 0 <= begin < end <= self.size:
            raise InternalError(f"the answer has bytes [{begin}, {end}) of a tensor of {self.size}")
        at = bisect.bisect_right(self._begins, begin)
        if (at and self._ends[at - 1] > begin) or (at < len(self._begins) and self._begins[at] < end):
            raise InternalError(f"the answer repeats bytes of [{begin}, {end})")
        self.missing -= end - begin
        if at < len(self._begins) and self._begins[at] == end:
            end = self._ends[at]
            del self._begins[at], self._ends[at]
        if at and self._ends[at - 1] == begin:
            self._ends[at - 1] = end
        else:
            self._begins.insert(at, begin)
            self._ends.insert(at, end)


class Answer:
    """Takes the messages of one Attend call and puts the result's bytes in place, each once.

    InternalError: the server breaks the protocol.
    """

    def __init__(self, outputs: Sequence[tuple[int, memoryview]]) -> None:
        self.accepted = False
        self.statistics: Any = None
        self._outputs = {tensor: (view, _Coverage(len(view))) for tensor, view in outputs}

    def receive(self, message: bytes) -> None:
        if self.statistics is not None:
            raise InternalError("the server sent a message after the statistics")
        if message[:1] == b"%c" % _CHUNKS:
            if not self.accepted:
                raise InternalError("the server sent chunks before it accepted")
            self._receive_chunks(memoryview(message))
            return
        try:
            response = AttendResponse.FromString(message)
        except Exception as error:
            raise InternalError(f"the server sent a malformed message: {error}") from error
        if response.chunks or response.HasField("accepted") == response.HasField("statistics"):
            raise InternalError("the server sent a message that is neither accepted, chunks nor statistics")
        if response.HasField("accepted") == self.accepted:
            raise InternalError("the server accepted twice" if self.accepted else
                                "the server sent statistics before it accepted")
        self.accepted = True
        if response.HasField("statistics"):
            self.statistics = response.statistics

    def _receive_chunks(self, message: memoryview) -> None:
        try:
            for tag, value in _fields(message):
                if tag != _CHUNKS:
                    raise InternalError(f"the server sent field {tag >> 3} beside chunks")
                tensor = offset = 0
                data = None
                for inner, content in _fields(value):
                    if inner == _TENSOR:
                        tensor = content
                    elif inner == _OFFSET:
                        offset = content
                    elif inner == _DATA:
                        data = content
                self._put(tensor, offset, data if data is not None else value[:0])
        except (IndexError, ValueError) as error:
            raise InternalError(f"the server sent malformed chunks: {error}") from error

    def _put(self, tensor: int, offset: int, data: memoryview) -> None:
        if tensor not in self._outputs:
            raise InternalError(f"the server sent bytes of {TensorId.name(tensor)}: not asked for")
        view, coverage = self._outputs[tensor]
        coverage.add(offset, offset + len(data))  # before anything is written
        view[offset:offset + len(data)] = data

    def finish(self) -> Any:
        """The Statistics message, after the server ended with OK."""
        if self.statistics is None:
            raise InternalError("the server ended with OK but sent no statistics")
        missing = sum(coverage.missing for _, coverage in self._outputs.values())
        if missing:
            raise InternalError(f"the server ended with OK but {missing} bytes of the result are missing")
        return self.statistics
