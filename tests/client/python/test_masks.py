"""Masks: what they become on the wire, and dense ones recognised as bands."""
import numpy as np
import pytest

from oracle import visible
from ringserve import errors, masks


def test_the_default_is_full_attention():
    assert not masks.full().to_message().ListFields()


def test_joined_masks_have_all_conditions():
    mask = masks.causal(bottom_right=True) & masks.window(left=9, sinks=2) & masks.documents([3, 4], [5, 6])
    message = mask.to_message()
    assert message.causal and message.bottom_right and message.sinks == 2
    assert message.window.left == 9 and not message.window.HasField("right")
    assert list(message.documents.q_lengths) == [3, 4] and list(message.documents.kv_lengths) == [5, 6]


def test_masks_that_contradict_each_other_cannot_be_joined():
    with pytest.raises(errors.InvalidArgumentError, match="window"):
        masks.window(left=1) & masks.window(left=2)
    with pytest.raises(errors.InvalidArgumentError, match="bottom_right"):
        (masks.causal(bottom_right=True) & masks.causal(q_offset=3)).to_message()


def test_a_window_open_at_both_sides_is_still_a_window():
    assert masks.window().to_message().HasField("window")


def test_blocks_are_packed_row_by_row_from_the_lowest_bit():
    grid = np.zeros((2, 9), bool)
    grid[0, 0] = grid[1, 8] = True
    assert masks.blocks(grid, 4, 4).to_message().blocks.bits == bytes([1, 0, 0, 1])


def test_no_slices_at_all_hide_everything():
    message = masks.slices([]).to_message()
    assert list(message.documents.q_lengths) == [0]
    assert not masks.full().to_message().HasField("documents")


@pytest.mark.parametrize("mask, most", [
    (masks.causal(), 1),
    (masks.causal(bottom_right=True), 2),
    (masks.causal() & masks.window(left=5), 3),
    (masks.causal() & masks.window(left=5, sinks=2), 8),
    (masks.prefix(7), 2),
    (masks.documents([11, 0, 9, 3]), 3),
    (masks.causal() & masks.documents([11, 9, 3], [4, 20, 6]), 6),
    (masks.blocks(np.array([[True, False], [True, True]]), 20, 25), 2),
])
def test_a_dense_band_structure_takes_few_slices(mask, most):
    seen = visible(mask, 37, 41)
    found = masks.dense(seen)
    assert len(found.slices) <= most
    assert (visible(found, 37, 41) == seen).all()


def test_any_dense_mask_is_recognised_exactly():
    random = np.random.default_rng(5)
    for density in (0, 0.02, 0.3, 0.5, 0.9, 0.99):
        for _ in range(20):
            shape = random.integers(1, 30, 2)
            seen = random.random(shape) < density
            mask = masks.dense(seen)
            if seen.all():
                assert mask == masks.full()
            else:
                assert (visible(mask, *shape) == seen).all()


def test_a_dense_mask_without_structure_is_refused():
    seen = np.random.default_rng(0).random((600, 600)) < 0.5
    with pytest.raises(errors.InvalidArgumentError, match="no structure of bands"):
        masks.dense(seen)


def test_a_dense_mask_of_numbers_is_refused():
    with pytest.raises(errors.InvalidArgumentError, match="bool"):
        masks.dense(np.zeros((3, 3)))
