"""Layouts against PyTorch's fixtures and against the service; shard and unshard."""
import json

import numpy as np
import pytest

import ringserve
from ringserve import errors, layout, masks


@pytest.fixture(scope="module")
def fixtures(source):
    return json.loads((source / "tests/golden/balancers.json").read_text())


def test_head_tail_is_pytorchs(fixtures):
    for case in fixtures["head_tail"]:
        row = layout.head_tail(case["balancer"]["seq_length"], case["world_size"]).rows[0]
        assert layout.permutation(row).tolist() == case["indices"][0]
        assert layout.inverse_permutation(row).tolist() == case["restore"][0]


def test_per_document_is_pytorchs(fixtures):
    for case in fixtures["per_document"]:
        for documents, indices, restore in zip(case["balancer"]["docs"], case["indices"], case["restore"]):
            row = layout.per_document(documents, sum(documents), case["world_size"]).rows[0]
            assert layout.permutation(row).tolist() == indices
            assert layout.inverse_permutation(row).tolist() == restore


def test_ptrr_of_the_service_is_pytorchs(fixtures, client):
    compared = 0
    for case in fixtures["ptrr"]:
        balancer = case["balancer"]
        if balancer["mask"] != {"kind": "causal", "align": "top_left"}:
            continue
        spec = ringserve.Spec(q_heads=1, q_len=balancer["seq_length"], head_dim=8, batch=balancer["batch"])
        plan = client.plan(spec, mask=masks.causal(), balancer="ptrr", workers=case["world_size"],
                           ptrr_block=balancer["block_size"], ptrr_count_blocks=True)
        for batch_row, indices in enumerate(case["indices"]):
            assert layout.permutation(plan.layout.q.row(batch_row)).tolist() == indices
        compared += 1
    assert compared > 0


def test_layouts_are_the_services(client):
    random = np.random.default_rng(3)
    for _ in range(60):
        ranks, length = int(random.integers(1, 9)), int(random.integers(1, 200))
        documents = random.multinomial(length - random.integers(0, length), [0.25] * 4).tolist()
        spec = ringserve.Spec(q_heads=1, q_len=length, head_dim=8)
        for balancer, mine in (("contiguous", layout.contiguous(length, ranks)),
                               ("head-tail", layout.head_tail(length, ranks)),
                               ("per-document", layout.per_document(documents, length, ranks))):
            plan = client.plan(spec, mask=masks.causal() & masks.documents(documents), balancer=balancer, workers=ranks)
            assert plan.layout.q == mine, (balancer, length, ranks, documents)


def test_unshard_undoes_shard_for_every_length():
    random = np.random.default_rng(4)
    for length in (1, 2, 7, 16, 61):
        for dim in (0, 1, 2, -1):
            shape = [3, 4, 5]
            shape[dim] = length
            tensor = random.standard_normal(shape)
            for ranks in (1, 2, 3, 8):
                for made in (layout.contiguous(length, ranks), layout.head_tail(length, ranks)):
                    shards = [ringserve.shard(tensor, made, rank, dim=dim) for rank in range(ranks)]
                    assert (ringserve.unshard(shards, made, dim=dim) == tensor).all()


def test_a_shard_holds_its_ranks_positions_in_their_order():
    tensor = np.arange(20).reshape(2, 10)
    made = layout.head_tail(10, 2)
    assert ringserve.shard(tensor, made, 0, dim=1).tolist() == [[0, 1, 2, 8, 9], [10, 11, 12, 18, 19]]


def test_batch_rows_with_layouts_of_their_own():
    rows = layout.SequenceLayout((layout.contiguous(8, 2).rows[0], layout.head_tail(8, 2).rows[0]))
    tensor = np.arange(16).reshape(2, 8)
    shards = [ringserve.shard(tensor, rows, rank, dim=1) for rank in range(2)]
    assert shards[0].tolist() == [[0, 1, 2, 3], [8, 9, 14, 15]]
    assert (ringserve.unshard(shards, rows, dim=1) == tensor).all()
    uneven = layout.SequenceLayout((layout.contiguous(7, 2).rows[0], (((0, 3),), ((3, 7),))))
    with pytest.raises(errors.InvalidArgumentError, match="shard each row by itself"):
        ringserve.shard(np.zeros((2, 7)), uneven, 0, dim=1)


def test_wrong_sizes_are_named():
    made = layout.contiguous(8, 2)
    for call, says in ((lambda: ringserve.shard(np.zeros((2, 7)), made, 0, dim=1), "7 positions"),
                       (lambda: ringserve.shard(np.zeros(8), made, 2, dim=0), "rank is 2"),
                       (lambda: ringserve.shard(np.zeros(8), made, 0, dim=1), "dim is 1"),
                       (lambda: ringserve.unshard([np.zeros(4)], made, dim=0), "1 shards"),
                       (lambda: ringserve.unshard([np.zeros(3), np.zeros(5)], made, dim=0), "shard 0 has 3"),
                       (lambda: layout.contiguous(0, 2), "length is 0"),
                       (lambda: layout.per_document([5, 5], 9, 2), "at most 9")):
        with pytest.raises(errors.InvalidArgumentError, match=says):
            call()
