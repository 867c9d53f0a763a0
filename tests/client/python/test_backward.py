"""Gradients by the client, against a whole service: against fp64, and what is refused."""
import asyncio

import grpc
import numpy as np
import pytest

import oracle
import ringserve
import ringserve.aio
from conftest import accepted, bf16_bits, chunk, statistics, upload, widened
from ringserve import errors, masks

TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 2e-2}
SLOPES = np.array([0.5, 0.25, 0.125, 0], np.float32)
SINKS = np.linspace(-1, 2, 4, dtype=np.float32)


def tensors(q=(1, 4, 33, 16), kv_heads=2, kv_len=33, value_dim=16, dtype=np.float32, seed=0):
    """q, k, v and the gradients of out and of lse."""
    random = np.random.default_rng(seed)
    shapes = q, (q[0], kv_heads, kv_len, q[3]), (q[0], kv_heads, kv_len, value_dim), (*q[:3], value_dim), q[:3]
    q, k, v, d_out, d_lse = (random.standard_normal(shape).astype(dtype) for shape in shapes)
    return q, k, v, d_out, d_lse if np.dtype(dtype) == np.float64 else d_lse.astype(np.float32)


def differentiated(client, q, k, v, d_out, **options):
    """Forward, then backward."""
    d_lse = options.pop("d_lse", None)
    forward = client.attend(q, k, v, return_lse=True, workers=2, **options)
    return client.backward(q, k, v, forward.out, forward.lse, d_out, d_lse=d_lse, workers=2, **options)


def check(result, expected, tolerance=2e-5):
    for name, gradient in zip(("d_q", "d_k", "d_v", "d_sink_logits"), expected):
        found = getattr(result, name)
        if gradient is None:
            assert found is None
        else:
            np.testing.assert_allclose(found.astype(np.float64), gradient, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_in_every_dtype_of_numpy(client, dtype):
    q, k, v, d_out, _ = tensors(dtype=dtype)
    result = differentiated(client, q, k, v, d_out, mask=masks.causal())
    assert [x.dtype for x in (result.d_q, result.d_k, result.d_v)] == [dtype] * 3
    check(result, oracle.gradients(q, k, v, d_out, oracle.visible(masks.causal(), 33, 33)), TOLERANCE[dtype])
    assert len(result.statistics.ranks) == 2 and result.attempts == 1


def test_gradients_in_bf16_by_its_bits(client):
    q, k, v, d_out = (bf16_bits(x) for x in tensors()[:4])
    result = differentiated(client, q, k, v, d_out, dtype="bf16")
    expected = oracle.gradients(*(widened(x) for x in (q, k, v, d_out)))
    for found, gradient in zip((result.d_q, result.d_k, result.d_v), expected):
        assert found.dtype == np.uint16
        np.testing.assert_allclose(widened(found), gradient, rtol=0, atol=5e-2)


def test_gradients_in_bf16_of_ml_dtypes(client):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    q, k, v, d_out = (x.astype(ml_dtypes.bfloat16) for x in tensors()[:4])
    result = differentiated(client, q, k, v, d_out)
    assert result.d_k.dtype == ml_dtypes.bfloat16
    check(result, oracle.gradients(q, k, v, d_out), 5e-2)


@pytest.mark.parametrize("mask", oracle.MASKS, ids=oracle.mask_name)
def test_gradients_under_a_mask(client, mask):
    q, k, v, d_out, d_lse = tensors(kv_len=45, value_dim=8)
    result = differentiated(client, q, k, v, d_out, d_lse=d_lse, mask=mask)
    check(result, oracle.gradients(q, k, v, d_out, oracle.visible(mask, 33, 45), d_lse=d_lse))


def test_each_batch_row_may_have_its_own_mask(client):
    q, k, v, d_out, _ = tensors(q=(3, 2, 20, 8), kv_len=20, value_dim=8)
    rows = [masks.causal(), masks.full(), masks.documents([5, 9])]
    result = differentiated(client, q, k, v, d_out, mask=rows)
    check(result, oracle.gradients(q, k, v, d_out, np.stack([oracle.visible(mask, 20, 20) for mask in rows])[:, None]))


def test_tensors_may_be_bshd_and_lie_anyhow_in_memory(client):
    q, k, v, d_out, d_lse = tensors(q=(2, 4, 33, 16))
    turned = [x.swapaxes(1, 2) for x in (q, k, v, d_out)]
    result = differentiated(client, *turned, d_lse=d_lse, layout="bshd", mask=masks.causal())
    assert result.d_k.shape == (2, 33, 2, 16)
    found = ringserve.BackwardResult(*(x.swapaxes(1, 2) for x in (result.d_q, result.d_k, result.d_v)), None, None, 1)
    check(found, oracle.gradients(q, k, v, d_out, oracle.visible(masks.causal(), 33, 33), d_lse=d_lse))
    again = differentiated(client, *(x.astype(">f4")[..., ::-1][..., ::-1] for x in (q, k, v, d_out)),
                           d_lse=d_lse[..., ::-1][..., ::-1], mask=masks.causal())
    check(again, (found.d_q, found.d_k, found.d_v))


def test_bias_and_slopes_take_part(client):
    q, k, v, d_out, d_lse = tensors(q=(2, 4, 33, 16))
    distance = np.abs(np.subtract.outer(np.arange(33), np.arange(33)))
    far = -SLOPES[:, None, None] * distance
    check(differentiated(client, q, k, v, d_out, d_lse=d_lse, alibi_slopes=SLOPES),
          oracle.gradients(q, k, v, d_out, bias=far, d_lse=d_lse))
    bias = np.random.default_rng(1).standard_normal((2, 1, 33, 33)).astype(np.float32)
    check(differentiated(client, q, k, v, d_out, bias=bias, mask=masks.causal()),
          oracle.gradients(q, k, v, d_out, oracle.visible(masks.causal(), 33, 33), bias=bias))
    check(differentiated(client, q, k, v, d_out, bias=bias > 0), oracle.gradients(q, k, v, d_out, bias > 0))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sink_logits_have_gradients_and_may_be_left_out_of_the_lse(client, dtype):
    q, k, v, d_out, d_lse = tensors(q=(2, 4, 33, 16), dtype=dtype)
    result = differentiated(client, q, k, v, d_out, d_lse=d_lse, sink_logits=SINKS, mask=masks.prefix(5))
    assert result.d_sink_logits.dtype == np.float32
    seen = oracle.visible(masks.prefix(5), 33, 33)
    check(result, oracle.gradients(q, k, v, d_out, seen, sinks=SINKS, d_lse=d_lse), 1e-4)
    bare = differentiated(client, q, k, v, d_out, d_lse=d_lse, sink_logits=SINKS, mask=masks.prefix(5), lse_without_sinks=True)
    check(bare, oracle.gradients(q, k, v, d_out, seen, sinks=SINKS, d_bare_lse=d_lse), 1e-4)


def test_no_gradient_of_the_lse_is_one_of_zeros(client):
    q, k, v, d_out, d_lse = tensors()
    without, zeros = (differentiated(client, q, k, v, d_out, d_lse=x) for x in (None, np.zeros_like(d_lse)))
    np.testing.assert_array_equal(without.d_q, zeros.d_q)


def test_options_are_passed_on(client):
    q, k, v, d_out, _ = tensors()
    for rotate in ("all-to-all", "all-gather"):
        result = differentiated(client, q, k, v, d_out, scale=0.7, balancer="contiguous", rotate=rotate, worker_weights=[1, 3])
        check(result, oracle.gradients(q, k, v, d_out, scale=0.7))
        plan = result.statistics.plan
        assert (plan.balancer, plan.rotate, plan.layout.q.rows[0]) == ("contiguous", rotate, (((0, 8),), ((8, 33),)))


def test_plan_says_what_backward_would_do(client):
    spec = ringserve.Spec(q_heads=1, q_len=8, kv_len=1 << 16, head_dim=64)
    forward, backward = (client.plan(spec, workers=4, backward=x) for x in (False, True))
    assert forward.rotate == "pass-q" != backward.rotate
    assert sum(backward.work) == sum(forward.work) == 8 << 16


def test_several_megabytes_arrive_whole(client):
    q, k, v, d_out, _ = tensors(q=(1, 8, 3001, 64), kv_heads=8, kv_len=3001, value_dim=64)
    result = differentiated(client, q, k, v, d_out, mask=masks.window(0, 0))  # each sees itself alone
    np.testing.assert_allclose(result.d_v, d_out, atol=1e-5)
    np.testing.assert_allclose(result.d_q, 0, atol=1e-4)
    assert result.statistics.upload_bytes == 5 * q.nbytes + 8 * 3001 * 4
    assert result.statistics.download_bytes == 3 * q.nbytes


@pytest.mark.parametrize("change, says", [
    ({"out": np.zeros((1, 4, 33, 8), np.float32)}, "out is f32 of shape"),
    ({"d_out": np.zeros((1, 4, 33, 16), np.float16)}, "d_out is f16 of shape"),
    ({"lse": np.zeros((1, 33, 4), np.float32)}, "lse is f32 of shape"),
    ({"lse": np.zeros((1, 4, 33))}, "lse is f64 of shape"),
    ({"d_lse": np.zeros((4, 33), np.float32)}, "d_lse is f32 of shape"),
    ({"rotate": "pass-q"}, "rotate"),  # by the server
    ({"return_lse": True}, "return_lse"),
    ({"mask": masks.window(-1)}, "window"),
])
def test_what_is_wrong_is_named(client, change, says):
    q, k, v, d_out, d_lse = tensors()
    given = {"q": q, "k": k, "v": v, "out": d_out, "lse": d_lse, "d_out": d_out, "d_lse": d_lse}
    with pytest.raises(errors.InvalidArgumentError, match=says):
        client.backward(**{**given, **change})


def test_asyncio_gets_the_same_gradients(cluster, client):
    q, k, v, d_out, _ = tensors()
    forward = client.attend(q, k, v, return_lse=True, workers=2)
    expected = client.backward(q, k, v, forward.out, forward.lse, d_out, workers=2)

    async def use():
        async with ringserve.aio.Client(cluster.address) as waiting:
            return await asyncio.gather(*(waiting.backward(q, k, v, forward.out, forward.lse, d_out, workers=2)
                                          for _ in range(3)))

    for result in asyncio.run(use()):
        for name in ("d_q", "d_k", "d_v"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))


def test_a_lost_worker_is_tried_again_and_every_tensor_is_sent_again(fake_server):
    sent = []

    def backward(requests, context, attempt):
        sent.append(upload(requests))
        yield accepted()
        if attempt == 1:
            context.set_trailing_metadata((("ringserve-retry-after-ms", "1"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "worker lost")
        for gradient, tensor in (("d-q", "q"), ("d-k", "k"), ("d-v", "v"), ("d-sink-logits", "sink-logits")):
            yield chunk(gradient, 0, bytes(sent[-1][tensor]))
        yield statistics()

    q, k, v, d_out, d_lse = tensors()
    server = fake_server(None, backward=backward)
    with ringserve.Client(server.address) as client:
        result = client.backward(q, k, v, d_out, d_lse, d_out, d_lse=d_lse, sink_logits=SINKS, request_id="mine")
    assert result.attempts == 2 and server.calls == 2
    check(result, (q, k, v, SINKS), 0)
    assert sent[0] == sent[1]
    assert {name: bytes(data) for name, data in sent[0].items()} == {
        name: x.tobytes() for name, x in (("q", q), ("k", k), ("v", v), ("out", d_out), ("lse", d_lse), ("d-out", d_out),
                                          ("d-lse", d_lse), ("sink-logits", SINKS))}
    headers = [server.headers.get() for _ in range(2)]
    assert [header.request_id for header in headers] == ["mine", "mine-retry1"]
    assert headers[0].d_lse and headers[0].spec.sink_logits and not headers[0].options.return_lse
