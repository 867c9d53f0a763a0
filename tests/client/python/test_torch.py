"""PyTorch: tensors, and the scope over scaled_dot_product_attention against PyTorch's own answers."""
import os
import threading

import grpc
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not importable: ./dev setup --pytorch brings it")

import ringserve  # noqa: E402
import ringserve.torch  # noqa: E402
from conftest import accepted, upload  # noqa: E402
from ringserve import errors, masks  # noqa: E402

SDPA = torch.nn.functional.scaled_dot_product_attention
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def tensors(*lead, heads=4, kv_heads=None, q_len=33, kv_len=33, dim=16, dtype=torch.float32):
    shapes = [(*lead, heads, q_len, dim)] + 2 * [(*lead, kv_heads or heads, kv_len, dim)]
    return tuple(torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)


def check(scope, *args, tolerance=3e-6, **kwargs):
    """The scope serves the call, and as PyTorch would answer."""
    before = scope.calls
    with scope:
        out = SDPA(*args, **kwargs)
    assert scope.calls == before + 1
    expected = SDPA(*args, **kwargs)
    assert out.dtype == expected.dtype and out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_client_attends_over_tensors(client, dtype):
    q, k, v = tensors(2, dtype=dtype)
    result = client.attend(q, k, v, mask=masks.causal(), return_lse=True, workers=2)
    assert result.out.dtype == dtype and result.out.shape == q.shape
    assert result.lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = SDPA(q.double(), k.double(), v.double(), is_causal=True)
    torch.testing.assert_close(result.out.double(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_tensors_may_lie_anyhow_in_memory(client):
    q, k, v = (x.transpose(1, 2).contiguous() for x in tensors(2))
    result = client.attend(q, k, v, layout="bshd")
    again = client.attend(*(x.transpose(1, 2) for x in (q, k, v)))
    torch.testing.assert_close(result.out.transpose(1, 2), again.out, rtol=0, atol=0)


def test_a_client_refuses_a_tensor_that_requires_a_gradient(client):
    q, k, v = tensors(1)
    k.requires_grad_()
    client.attend(q, k, v)
    with torch.enable_grad(), pytest.raises(errors.UnimplementedError, match="k requires a gradient.*context_parallel"):
        client.attend(q, k, v)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_dtype_is_served(scope, dtype):
    check(scope, *tensors(2, dtype=dtype), tolerance=2 * TOLERANCE[dtype])


def test_the_arguments_mean_what_they_mean_in_pytorch(scope):
    q, k, v = tensors(2, kv_len=45)
    check(scope, q, k, v, is_causal=True)
    check(scope, q, k, v, None, 0.0, True)
    check(scope, q, k, v, scale=0.3)
    check(scope, query=q, key=k, value=v)
    check(scope, q, k[:, :1].expand_as(k), v[..., :5])
    q, k, v = tensors(2, kv_heads=2)
    check(scope, q, k, v, enable_gqa=True, is_causal=True)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3)])
def test_leading_dimensions_are_kept(scope, lead):
    check(scope, *tensors(*lead))


def test_tensors_without_heads_and_those_that_broadcast(scope):
    check(scope, *(x[0] for x in tensors()))
    q, k, v = tensors(3)
    check(scope, q, k[:1], v[:1])


@pytest.mark.parametrize("shape", [(33, 45), (1, 45), (3, 1, 1, 45), (3, 1, 33, 45), (1, 4, 33, 45)])
def test_boolean_masks_that_are_bands_in_every_shape(scope, shape):
    q, k, v = tensors(3, kv_len=45)
    mask = torch.ones(shape, dtype=torch.bool).tril(3)
    mask[..., :9] = True
    if len(shape) == 4 and shape[0] == 3:
        mask[1, ..., 20:] = False
    check(scope, q, k, v, attn_mask=mask)


def test_a_row_that_sees_nothing_is_zero(scope):
    mask = torch.ones(33, 33, dtype=torch.bool)
    mask[7] = False
    check(scope, *tensors(1), attn_mask=mask)
    with scope:
        assert not SDPA(*tensors(1), attn_mask=torch.zeros(33, 33, dtype=torch.bool)).any()


def test_numbers_that_only_show_or_hide_are_a_mask(scope):
    mask = torch.full((33, 33), -torch.inf).triu(1)
    check(scope, *tensors(2), attn_mask=mask)


@pytest.mark.parametrize("shape", [(33, 33), (1, 4, 33, 33), (2, 1, 33, 33), (2, 4, 33, 33), (2, 1, 1, 33)])
def test_other_masks_are_served_as_a_bias(scope, shape):
    q, k, v = tensors(2)
    check(scope, q, k, v, attn_mask=torch.randn(shape))
    check(scope, q, k, v, attn_mask=torch.rand(shape) < 0.7)
    q, k, v = tensors(2, dtype=torch.bfloat16)
    check(scope, q, k, v, attn_mask=torch.randn(shape).bfloat16(), tolerance=4e-2)


def test_a_bias_and_the_scopes_mask_hold_together(client):
    scope = ringserve.torch.context_parallel(client, mask=masks.causal(), workers=2)
    q, k, v = tensors(1)
    bias = torch.randn(33, 33)
    with scope:
        found = SDPA(q, k, v, attn_mask=bias)
    expected = SDPA(q, k, v, attn_mask=bias.masked_fill(~torch.ones(33, 33).tril().bool(), -torch.inf))
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)


def test_the_scopes_mask_holds_beside_the_calls(client):
    documents = masks.documents([10, 23])
    scope = ringserve.torch.context_parallel(client, mask=documents, workers=2)
    q, k, v = tensors(2)
    same = torch.block_diag(torch.ones(10, 10), torch.ones(23, 23)).bool()
    with scope:
        for found, mask in ((SDPA(q, k, v), same), (SDPA(q, k, v, is_causal=True), same.tril()),
                            (SDPA(q, k, v, attn_mask=torch.ones(33, 33).tril(2).bool()), same.tril(2))):
            torch.testing.assert_close(found, dense(q, k, v, mask), rtol=0, atol=3e-6)
    aligned = ringserve.torch.context_parallel(client, mask=masks.causal(bottom_right=True))
    with aligned, pytest.raises(errors.InvalidArgumentError, match="aligns otherwise"):
        SDPA(q, k, v, is_causal=True)


def dense(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("arguments, says", [
    ({"dropout_p": 0.1}, "dropout_p is 0.1"),
    ({"query": torch.nested.nested_tensor([torch.zeros(4, 5, 16)])}, "nested"),
])
def test_what_is_not_served_is_refused(scope, arguments, says):
    q, k, v = tensors(1)
    with scope, pytest.raises(errors.UnimplementedError, match=says):
        SDPA(**{"query": q, "key": k, "value": v, **arguments})
    assert scope.calls == 0


@pytest.mark.parametrize("change, says", [
    ({"is_causal": True, "attn_mask": torch.ones(33, 33, dtype=torch.bool)}, "both given"),
    ({"attn_mask": torch.ones(33, 32, dtype=torch.bool)}, "must broadcast"),
    ({"key": torch.zeros(1, 2, 33, 16)}, "enable_gqa"),
    ({"query": torch.zeros(1, 4, 33, 16, dtype=torch.complex64)}, "complex64"),
])
def test_what_is_wrong_is_named(scope, change, says):
    q, k, v = tensors(1)
    with scope, pytest.raises(errors.InvalidArgumentError, match=says):
        SDPA(**{"query": q, "key": k, "value": v, **change})


def test_who_asks_for_it_gets_a_local_answer_and_is_told_once(client):
    scope = ringserve.torch.context_parallel(client, local_fallback=True)
    with scope, pytest.warns(UserWarning, match="dropout_p is 0.1") as told:
        for _ in range(2):
            assert SDPA(*tensors(1), dropout_p=0.1).shape == (1, 4, 33, 16)
    assert len(told) == 1 and scope.calls == 0


@pytest.mark.parametrize("name, value", [("mask", masks.Mask(causal=True)), ("scale", 0.5), ("bias", torch.zeros(1, 1, 33, 33)),
                                         ("alibi_slopes", torch.zeros(4)), ("sink_logits", torch.zeros(4))])
def test_nothing_runs_locally_beside_what_it_would_not_have(client, name, value):
    with pytest.raises(errors.InvalidArgumentError, match=f"local_fallback is set beside {name}"):
        ringserve.torch.context_parallel(client, local_fallback=True, **{name: value})


def test_a_scale_of_the_scope_is_for_calls_without(client):
    check(ringserve.torch.context_parallel(client, scale=0.25), *tensors(1), scale=0.5)
    q, k, v = tensors(1)
    with ringserve.torch.context_parallel(client, scale=0.25):
        found = SDPA(q, k, v)
    torch.testing.assert_close(found, SDPA(q, k, v, scale=0.25), rtol=0, atol=3e-6)


def test_a_dense_attn_mask_beside_a_bias_of_the_scope_is_refused(client):
    q, k, v = tensors(1)
    with ringserve.torch.context_parallel(client, bias=torch.zeros(1, 1, 33, 33)):
        with pytest.raises(errors.InvalidArgumentError, match="a request takes one"):
            SDPA(q, k, v, attn_mask=torch.randn(33, 33))
        SDPA(q, k, v, attn_mask=torch.ones(33, 33, dtype=torch.bool).tril())


@pytest.mark.parametrize("name, value", [("layout", "bshd"), ("dtype", "bf16"), ("return_lse", True)])
def test_what_calls_say_is_no_option_of_the_scope(client, name, value):
    with pytest.raises(errors.InvalidArgumentError, match=f"{name} is the scope's own"):
        ringserve.torch.context_parallel(client, **{name: value})


def test_scopes_nest_and_the_innermost_serves(client):
    outer, inner = (ringserve.torch.context_parallel(client) for _ in range(2))
    q, k, v = tensors(1)
    with outer:
        SDPA(q, k, v)
        with inner:
            SDPA(q, k, v)
        with outer:
            SDPA(q, k, v)
        SDPA(q, k, v)
    SDPA(q, k, v)
    assert (outer.calls, inner.calls) == (3, 1)


def test_an_exception_leaves_nothing_behind(scope):
    with pytest.raises(KeyError), scope:
        raise KeyError
    SDPA(*tensors(1))
    assert scope.calls == 0


def test_other_threads_are_not_affected(scope):
    q, k, v = tensors(1)
    inside, go = threading.Event(), threading.Event()

    def other():
        inside.wait(30)
        SDPA(q, k, v)
        go.set()

    thread = threading.Thread(target=other)
    thread.start()
    with scope:
        inside.set()
        assert go.wait(30)
        assert scope.calls == 0
        SDPA(q, k, v)
    thread.join()
    assert scope.calls == 1


def test_one_scope_in_several_threads_counts_all_calls(scope):
    def work():
        for _ in range(5):
            with scope:
                SDPA(*tensors(1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scope.calls == 20


def test_a_server_that_goes_in_the_middle_is_a_clear_exception(fake_server):
    def script(requests, context, attempt):
        upload(requests)
        yield accepted()
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    with ringserve.Client(fake_server(script).address) as client:
        with ringserve.torch.context_parallel(client, max_attempts=1) as scope:
            with pytest.raises(errors.UnavailableError, match="gone"):
                SDPA(*tensors(1))
    SDPA(*tensors(1))
    assert scope.calls == 0


def test_as_a_decorator_and_as_a_module(client):
    scope = ringserve.torch.context_parallel(client)

    @scope
    def model(*inputs):
        return SDPA(*inputs)

    q, k, v = tensors(1)
    torch.testing.assert_close(model(q, k, v), SDPA(q, k, v), rtol=0, atol=3e-6)
    assert scope.calls == 1

    class Attention(torch.nn.Module):
        def forward(self, q, k, v):
            return SDPA(q, k, v)

    wrapped = ringserve.torch.ContextParallel(Attention(), client, mask=masks.causal())
    torch.testing.assert_close(wrapped(q, k, v), SDPA(q, k, v, is_causal=True), rtol=0, atol=3e-6)
    assert wrapped.scope.calls == 1


@pytest.mark.parametrize("training", [False, True])
def test_multi_head_attention_is_served_inside(scope, training):
    module = torch.nn.MultiheadAttention(32, 4, batch_first=True).train(training)
    x = torch.randn(2, 20, 32)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(20)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    padding[1, 15:] = True
    for more in ({}, {"attn_mask": causal, "is_causal": True}, {"key_padding_mask": padding}):
        with scope:
            out, _ = module(x, x, x, need_weights=False, **more)
        torch.testing.assert_close(out, module(x, x, x, need_weights=False, **more)[0], rtol=0, atol=3e-6)
    assert scope.calls == 3


def test_an_encoder_is_served_layer_by_layer(scope):
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    x = torch.randn(2, 20, 32)
    with scope:
        out = encoder(x)
    assert scope.calls == 3 and scope.statistics.plan.workers == 2
    torch.testing.assert_close(out, encoder(x), rtol=0, atol=1e-5)


def test_autocast_acts_as_without_the_scope(scope):
    q, k, v = tensors(1)
    with torch.autocast("cpu", torch.bfloat16):
        check(scope, q, k, v, tolerance=2e-2)


def test_inference_mode_is_served(scope):
    with torch.inference_mode():
        check(scope, *tensors(2))


def test_a_compiled_function_is_served(scope):
    compiled = torch.compile(lambda q, k, v: SDPA(2 * q, k, v), backend="eager")
    q, k, v = tensors(1)
    expected = compiled(q, k, v)
    with scope:
        found = compiled(q, k, v)
    assert scope.calls == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)
