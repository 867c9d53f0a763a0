"""The client against a whole service: answers against fp64, and what is refused."""
import concurrent.futures
import subprocess

import grpc
import numpy as np
import pytest

import oracle
import ringserve
from conftest import bf16_bits, echo, widened
from ringserve import errors, masks

TOLERANCE = {"float64": 1e-12, "float32": 3e-6, "float16": 3e-3}


def tensors(q=(1, 4, 33, 16), kv_heads=2, kv_len=33, value_dim=16, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    shapes = q, (q[0], kv_heads, kv_len, q[3]), (q[0], kv_heads, kv_len, value_dim)
    return tuple(random.standard_normal(shape).astype(dtype) for shape in shapes)


def check(result, q, k, v, seen=None, scale=None, tolerance=3e-6, bias=0):
    out, lse = oracle.attention(q, k, v, seen, scale, bias)
    np.testing.assert_allclose(result.out.astype(np.float64), out, rtol=0, atol=tolerance)
    if result.lse is not None:
        np.testing.assert_allclose(result.lse, lse, rtol=0, atol=max(tolerance, 1e-6) * 10)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_attends_in_every_dtype_of_numpy(client, dtype):
    q, k, v = tensors(dtype=dtype)
    result = client.attend(q, k, v, return_lse=True, workers=2)
    assert result.out.dtype == dtype and result.out.shape == q.shape
    assert result.lse.dtype == ("float64" if dtype == "float64" else "float32") and result.lse.shape == q.shape[:3]
    check(result, q, k, v, tolerance=TOLERANCE[dtype])


def test_attends_in_bf16_by_its_bits(client):
    q, k, v = (bf16_bits(x) for x in tensors())
    result = client.attend(q, k, v, dtype="bf16", workers=2)
    assert result.out.dtype == np.uint16
    out, _ = oracle.attention(*(widened(x) for x in (q, k, v)))
    np.testing.assert_allclose(widened(result.out), out, rtol=0, atol=2e-2)


def test_attends_in_bf16_of_ml_dtypes(client):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    q, k, v = (x.astype(ml_dtypes.bfloat16) for x in tensors())
    result = client.attend(q, k, v, workers=2)
    assert result.out.dtype == ml_dtypes.bfloat16
    check(result, q, k, v, tolerance=2e-2)


@pytest.mark.parametrize("mask", oracle.MASKS, ids=oracle.mask_name)
def test_a_mask_means_what_the_protocol_says(client, mask):
    q, k, v = tensors(kv_len=45, value_dim=8)
    result = client.attend(q, k, v, mask=mask, return_lse=True, workers=2)
    check(result, q, k, v, oracle.visible(mask, 33, 45))


def test_each_batch_row_may_have_its_own_mask(client):
    q, k, v = tensors(q=(3, 2, 20, 8), kv_len=20, value_dim=8)
    rows = [masks.causal(), masks.full(), masks.documents([5, 9])]
    result = client.attend(q, k, v, mask=rows, workers=2)
    check(result, q, k, v, np.stack([oracle.visible(mask, 20, 20) for mask in rows])[:, None])


def test_tensors_may_be_bshd_and_lie_anyhow_in_memory(client):
    q, k, v = tensors(q=(2, 4, 33, 16))
    result = client.attend(*(x.swapaxes(1, 2) for x in (q, k, v)), layout="bshd", mask=masks.causal(), return_lse=True)
    assert result.out.shape == (2, 33, 4, 16) and result.lse.shape == (2, 4, 33)
    out, lse = oracle.attention(q, k, v, oracle.visible(masks.causal(), 33, 33))
    np.testing.assert_allclose(result.out.swapaxes(1, 2), out, atol=3e-6)
    np.testing.assert_allclose(result.lse, lse, atol=3e-5)
    big_endian = [x.astype(">f4")[..., ::-1][..., ::-1] for x in (q, k, v)]
    again = client.attend(*big_endian, mask=masks.causal())
    np.testing.assert_array_equal(again.out, result.out.swapaxes(1, 2))


def test_scale_and_balancer_and_rotate_are_passed_on(client):
    q, k, v = tensors()
    result = client.attend(q, k, v, scale=0.7, balancer="contiguous", rotate="all-gather", workers=2,
                           worker_weights=[1, 3])
    check(result, q, k, v, scale=0.7)
    plan = result.statistics.plan
    assert (plan.balancer, plan.rotate, plan.workers) == ("contiguous", "all-gather", 2)
    assert plan.layout.q.rows[0] == (((0, 8),), ((8, 33),))
    assert len(result.statistics.ranks) == 2 and result.attempts == 1


def test_several_megabytes_arrive_whole(client):
    q, k, v = tensors(q=(1, 8, 3001, 64), kv_heads=8, kv_len=3001, value_dim=64)
    result = client.attend(q, k, v, mask=masks.window(0, 0), workers=2)
    np.testing.assert_allclose(result.out, v, atol=1e-6)
    assert result.statistics.upload_bytes == 3 * q.nbytes


def test_a_bias_is_added_to_the_scaled_scores(client):
    q, k, v = tensors(q=(2, 4, 33, 16))
    random = np.random.default_rng(1)
    for shape in ((1, 1), (2, 1), (1, 4), (2, 4)):
        bias = random.standard_normal((*shape, 33, 33)).astype(np.float32)
        result = client.attend(q, k, v, bias=bias, mask=masks.causal(), return_lse=True, workers=2)
        check(result, q, k, v, oracle.visible(masks.causal(), 33, 33), bias=bias)
        shown = bias > 0
        check(client.attend(q, k, v, bias=shown, return_lse=True, workers=2), q, k, v, shown)


def test_alibi_slopes_lower_the_scores_of_distant_keys(client):
    q, k, v = tensors()
    slopes = np.array([0.5, 0.25, 0.125, 0], np.float32)
    distance = np.abs(np.subtract.outer(np.arange(33), np.arange(33)))
    result = client.attend(q, k, v, alibi_slopes=slopes, return_lse=True, workers=2)
    check(result, q, k, v, bias=-slopes[:, None, None] * distance)


def test_sink_logits_take_their_share_and_may_be_left_out_of_the_lse(client):
    q, k, v = tensors()
    logits = np.linspace(-1, 2, 4, dtype=np.float32)[:, None]
    out, lse = oracle.attention(q, k, v)
    with_sinks = np.logaddexp(lse, logits)
    result = client.attend(q, k, v, sink_logits=logits[:, 0], return_lse=True, workers=2)
    np.testing.assert_allclose(result.lse, with_sinks, atol=1e-5)
    np.testing.assert_allclose(result.out, out * np.exp(lse - with_sinks)[..., None], atol=3e-6)
    bare = client.attend(q, k, v, sink_logits=logits[:, 0], lse_without_sinks=True, return_lse=True, workers=2)
    np.testing.assert_allclose(bare.lse, lse, atol=1e-5)
    np.testing.assert_array_equal(bare.out, result.out)


def test_numbers_of_numpy_are_numbers(client):
    q, k, v = tensors()
    mask = masks.causal() & masks.window(left=np.int32(5)) & masks.documents(np.array([20, 13]))
    result = client.attend(q, k, v, mask=mask, workers=np.int64(2), scale=np.float32(0.5))
    check(result, q, k, v, oracle.visible(mask, 33, 33), scale=0.5)


def test_threads_share_a_client(client):
    def one(seed):
        q, k, v = tensors(seed=seed)
        check(client.attend(q, k, v, mask=masks.causal(), workers=2), q, k, v, oracle.visible(masks.causal(), 33, 33))

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(18)))


def test_plan_says_what_attend_would_do(client):
    q, k, v = tensors()
    plan = client.plan(ringserve.Spec.of(q, k, v), mask=masks.causal(), workers=7, balancer="head-tail",
                       rotate="all-to-all")
    assert plan.workers == 7 and plan.balancer == "head-tail"
    assert sum(plan.work) == 33 * 34 // 2
    assert [sum(step.work for step in steps) for steps in plan.steps] == list(plan.work)
    assert "head-tail" in plan.description


def test_status_lists_the_workers(client):
    status = client.status()
    assert [worker.threads for worker in status.workers] == [1, 1]
    assert not status.draining and status.epoch


@pytest.mark.parametrize("change, says", [
    ({"q": np.zeros((4, 33, 16), np.float32)}, "q has shape"),
    ({"q": np.zeros((1, 4, 33, 16), np.int64)}, "int64"),
    ({"q": np.zeros((1, 4, 33, 16), np.uint16)}, "uint16"),
    ({"k": np.zeros((1, 2, 33, 16), np.float64)}, "k is f64, q is f32"),
    ({"k": np.zeros((2, 2, 33, 16), np.float32)}, "batch rows differ"),
    ({"k": np.zeros((1, 2, 33, 8), np.float32)}, "elements a head differ"),
    ({"v": np.zeros((1, 2, 32, 16), np.float32)}, "positions differ"),
    ({"v": np.zeros((1, 1, 33, 16), np.float32)}, "heads differ"),
    ({"layout": "sbhd"}, "must be bhsd or bshd"),
    ({"dtype": "f32"}, "dtype"),
    ({"dtype": "bf16"}, "nothing is converted"),
    ({"balancer": "best"}, "head-tail"),
    ({"workers": 2**40}, "workers"),
    ({"workers": "two"}, "workers"),
    ({"worker_weights": ["heavy"]}, "worker_weights"),
    ({"deadline": 0}, "deadline"),
    ({"max_attempts": 0}, "max_attempts"),
    ({"wait_for_ready": -1}, "wait_for_ready"),
    ({"sink_logits": np.zeros(3, np.float32)}, "sink_logits"),
    ({"mask": masks.window(-1)}, "window"),  # by the server
    ({"mask": [masks.causal()] * 2}, "masks"),
    ({"mask": "causal"}, "ringserve.masks"),
    ({"mask": [None]}, "ringserve.masks"),
    ({"mask": masks.window(left=1.5)}, "window"),
    ({"mask": masks.documents([2**70])}, "documents"),
    ({"scale": "one"}, "scale"),
    ({"bias": np.zeros((1, 1, 33, 32), np.float32)}, "bias is f32 of shape"),
    ({"bias": np.zeros((1, 1, 33, 33), np.float64)}, "bias is f64"),
    ({"scale": float("nan")}, "scale"),
    ({"request_id": "\n"}, "request_id"),
])
def test_what_is_wrong_is_named(client, change, says):
    q, k, v = tensors()
    with pytest.raises(errors.InvalidArgumentError, match=says) as raised:
        client.attend(**{"q": q, "k": k, "v": v, **change})
    assert isinstance(raised.value, ValueError) and raised.value.status == "INVALID_ARGUMENT"


def test_an_unknown_option_is_a_type_error(client):
    with pytest.raises(TypeError, match="causal"):
        client.attend(*tensors(), causal=True)


def test_statuses_have_classes_of_their_own(client):
    with pytest.raises(errors.UnavailableError, match="workers") as raised:
        client.attend(*tensors(), workers=3)
    assert raised.value.attempts == 1
    with pytest.raises(errors.FailedPreconditionError):
        client.plan(ringserve.Spec(q_heads=1, q_len=1 << 30, head_dim=1024, batch=1 << 10), workers=2)


def test_a_dead_address_is_said_at_once():
    with ringserve.Client("127.0.0.1:1") as client:
        with pytest.raises(errors.UnavailableError):
            client.attend(*tensors())
        with pytest.raises(ConnectionError):
            client.status()


@pytest.fixture
def certificates(source, tmp_path):
    for authority in ("ours", "other"):
        subprocess.run([source / "deploy/make-certs", tmp_path / authority, "node"], check=True, capture_output=True)
    return tmp_path


def test_tls_needs_the_right_certificates_on_both_sides(fake_server, certificates):
    ours, other = certificates / "ours", certificates / "other"
    pem = [(ours / name).read_bytes() for name in ("node.key", "node.crt", "ca.crt")]
    server = fake_server(echo, credentials=grpc.ssl_server_credentials([tuple(pem[:2])], pem[2], True))
    own = {"tls_cert": ours / "node.crt", "tls_key": ours / "node.key"}
    q, k, v = tensors()
    with ringserve.Client(server.address, tls_ca=ours / "ca.crt", **own) as client:
        np.testing.assert_array_equal(client.attend(q, k, v).out, q)
    for wrong in ({}, {"tls_ca": ours / "ca.crt"}, {"tls_ca": other / "ca.crt", **own},
                  {"tls_ca": ours / "ca.crt", "tls_cert": other / "node.crt", "tls_key": other / "node.key"}):
        with ringserve.Client(server.address, **wrong) as client, pytest.raises(errors.UnavailableError):
            client.attend(q, k, v)


def test_a_client_that_is_closed_says_so(cluster):
    with ringserve.Client(cluster.address) as client:
        client.status()
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        client.status()
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        client.attend(*tensors())


def test_a_client_of_a_dead_server_keeps_no_broken_connections():
    with ringserve.Client("127.0.0.1:1") as client:
        for _ in range(5):
            with pytest.raises(errors.UnavailableError):
                client.status()
        assert len(client._connections) == 1


def test_client_options_are_checked():
    for options, says in (({"server": ""}, "server"), ({"connect_timeout": 0}, "connect_timeout"),
                          ({"tls_ca": "/absent"}, "/absent"), ({"tls_cert": "/x", "tls_key": "/y"}, "tls_ca"),
                          ({"tls_ca": "/x", "tls_key": "/y"}, "tls_cert")):
        with pytest.raises(errors.InvalidArgumentError, match=says):
            ringserve.Client(**options)
