"""Messages written and read by hand, against protobuf's own reading."""
import numpy as np
import pytest

from conftest import accepted, chunk, statistics
from ringserve import _protocol, _wire, errors


def uploads(*sizes):
    random = np.random.default_rng(1)
    return [(i + 1, memoryview(random.bytes(size))) for i, size in enumerate(sizes)]


def test_uploads_are_messages_that_protobuf_reads_and_that_are_full():
    tensors = uploads(3, 1_500_000, 127, 128, 2_000_000)
    messages = list(_wire.upload_messages(tensors))
    found = {tensor: bytearray() for tensor, _ in tensors}
    for message in messages:
        for piece in _protocol.AttendRequest.FromString(message).chunks:
            assert piece.offset == len(found[piece.tensor])
            found[piece.tensor] += piece.data
    assert {tensor: bytes(view) for tensor, view in tensors} == found
    assert len(messages) == -(-sum(len(view) for _, view in tensors) // _protocol.CHUNK_BYTES)


def answer(size=10):
    out = bytearray(size)
    taken = _wire.Answer([(_protocol.TensorId.number("out"), memoryview(out))])
    return taken, out


def feed(taken, *messages):
    for message in messages:
        taken.receive(message if isinstance(message, bytes) else message.SerializeToString())


def test_chunks_come_in_any_order():
    taken, out = answer()
    feed(taken, accepted(), chunk("out", 6, b"ghij"), chunk("out", 0, b"ab"), chunk("out", 2, b"cdef"), statistics())
    assert taken.finish().total_seconds == 1
    assert out == b"abcdefghij"


def test_fields_in_another_order_and_unknown_ones_are_read():
    taken, out = answer(2)
    inner = b"\x1a\x02hi" + b"\x10\x00" + b"\x08\x04" + b"\x79" + bytes(8) + b"\x7d" + bytes(4)
    feed(taken, accepted(), b"\x12" + bytes([len(inner)]) + inner, statistics())
    taken.finish()
    assert out == b"hi"


@pytest.mark.parametrize("messages, says", [
    ([chunk("out", 0, b"a")], "before it accepted"),
    ([statistics()], "statistics before"),
    ([accepted(), accepted()], "accepted twice"),
    ([accepted(), chunk("out", 8, b"abc")], "of a tensor of 10"),
    ([accepted(), chunk("out", 2**63, b"abc")], "of a tensor of 10"),
    ([accepted(), chunk("out", 0, b"")], "of a tensor of 10"),
    ([accepted(), chunk("lse", 0, b"a")], "lse: not asked for"),
    ([accepted(), chunk("out", 0, b"abc"), chunk("out", 2, b"d")], "repeats"),
    ([accepted(), chunk("out", 4, b"abc"), chunk("out", 3, b"de")], "repeats"),
    ([accepted(), b"\x12\x7f"], "malformed"),
    ([accepted(), b"\x12\x03\x0b\x00\x00"], "malformed"),
    ([accepted(), b"\x12\x0b" + b"\xff" * 11], "malformed"),
    ([accepted(), b"\xff\xff"], "malformed"),
    ([accepted(), b""], "neither"),
    ([accepted(), chunk("out", 0, b"abcdefghij"), statistics(), statistics()], "after the statistics"),
])
def test_what_breaks_the_protocol_is_an_internal_error(messages, says):
    taken, _ = answer()
    with pytest.raises(errors.InternalError, match=says):
        feed(taken, *messages)


def test_an_answer_that_lacks_something_is_no_answer():
    taken, _ = answer()
    feed(taken, accepted(), chunk("out", 0, b"abc"))
    with pytest.raises(errors.InternalError, match="no statistics"):
        taken.finish()
    feed(taken, statistics())
    with pytest.raises(errors.InternalError, match="7 bytes of the result are missing"):
        taken.finish()


def test_bytes_that_come_in_random_pieces_are_each_counted_once():
    random = np.random.default_rng(2)
    for _ in range(50):
        size = int(random.integers(1, 60))
        cuts = [0, *sorted(set(random.integers(0, size, 8).tolist()) - {0}), size]
        coverage = _wire._Coverage(size)
        for at in random.permutation(len(cuts) - 1):
            coverage.add(cuts[at], cuts[at + 1])
        assert coverage.missing == 0
        with pytest.raises(errors.InternalError):
            coverage.add(size - 1, size)
