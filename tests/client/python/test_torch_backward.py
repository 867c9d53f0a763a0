"""PyTorch's autograd through the scope: gradients against PyTorch's own and against finite differences."""
import threading

import grpc
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not importable: ./dev setup --pytorch brings it")

import ringserve  # noqa: E402
import ringserve.torch  # noqa: E402
from conftest import accepted, chunk, statistics, upload  # noqa: E402
from ringserve import errors, masks  # noqa: E402

SDPA = torch.nn.functional.scaled_dot_product_attention
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tensors(*lead, heads=4, kv_heads=None, q_len=33, kv_len=33, dim=16, dtype=torch.float32):
    shapes = [(*lead, heads, q_len, dim)] + 2 * [(*lead, kv_heads or heads, kv_len, dim)]
    return tuple(torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes)


def gradients(out, inputs):
    """Of inputs, from a gradient of out that is the same for all outs of its shape."""
    weights = torch.sin(torch.arange(out.numel(), dtype=torch.float64)).view(out.shape).to(out.dtype)
    return torch.autograd.grad(out, inputs, weights)


def check(scope, *inputs, tolerance=2e-5, **kwargs):
    """The scope serves forward and backward, as PyTorch would answer."""
    before = scope.calls, scope.backward_calls
    with scope:
        out = SDPA(*inputs, **kwargs)
    found = gradients(out, inputs)
    assert (scope.calls, scope.backward_calls) == (before[0] + 1, before[1] + 1)
    expected = SDPA(*inputs, **kwargs)
    assert out.dtype == expected.dtype and out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected.double(), rtol=0, atol=tolerance)
    for x, y, z in zip(found, gradients(expected, inputs), inputs):
        assert x.dtype == z.dtype and x.shape == z.shape
        torch.testing.assert_close(x.double(), y.double(), rtol=0, atol=tolerance)


BITS = torch.from_numpy(np.random.default_rng(3).random((2, 6, 6)) < 0.6)  # by head: no structure of bands


@pytest.mark.parametrize("mask, arguments, options", [
    (None, {}, {}),
    (None, {"is_causal": True}, {}),
    (None, {"scale": 0.3}, {}),
    (masks.causal() & masks.window(left=2, sinks=1), {}, {}),
    (masks.window(1, 1), {}, {}),
    (masks.prefix(3), {}, {}),
    (masks.documents([2, 3]), {}, {}),
    (masks.documents([2, 3]), {"is_causal": True}, {}),
    (masks.blocks(BITS[0, :3, :2].numpy(), 2, 3), {}, {}),
    (None, {"attn_mask": torch.ones(6, 6, dtype=torch.bool).tril(1)}, {}),
    (None, {"attn_mask": BITS}, {}),
    (None, {"attn_mask": torch.from_numpy(np.random.default_rng(4).standard_normal((2, 6, 6)))}, {}),
    (masks.causal(), {}, {"sink_logits": torch.tensor([0.5, -1])}),
    (masks.causal(), {}, {"sink_logits": np.array([0.5, -1], np.float32), "lse_without_sinks": True}),
    (masks.causal(), {}, {"alibi_slopes": torch.tensor([0.5, 0.25])}),
], ids=["full", "causal", "scale", "window with sinks", "window", "prefix", "documents with padding", "causal documents",
        "blocks", "bands", "boolean", "bias", "sink logits", "sink logits apart", "alibi"])
def test_gradients_are_what_finite_differences_say(client, mask, arguments, options):
    scope = ringserve.torch.context_parallel(client, mask=mask, workers=2, **options)

    def served(q, k, v):
        with scope:
            return SDPA(q, k, v, enable_gqa=True, **arguments)

    assert torch.autograd.gradcheck(served, tensors(1, heads=2, kv_heads=1, q_len=6, kv_len=6, dim=2, dtype=torch.float64))
    assert scope.calls > 40 and scope.backward_calls > 20


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_dtype_has_gradients(scope, dtype):
    check(scope, *tensors(2, dtype=dtype), is_causal=True, tolerance=TOLERANCE[dtype])


def test_the_arguments_mean_what_they_mean_in_pytorch(scope):
    q, k, v = tensors(2, kv_len=45)
    check(scope, q, k, v, is_causal=True)
    check(scope, q, k, v[..., :5], scale=0.3)
    check(scope, *tensors(2, kv_heads=2), enable_gqa=True, is_causal=True)
    check(scope, *tensors(1, q_len=3, kv_len=500))  # queries travel, forward alone
    check(scope, q, k, v, attn_mask=torch.randn(2, 1, 33, 45))
    mask = torch.rand(33, 45) < 0.5
    mask[7] = False  # sees nothing
    check(scope, q, k, v, attn_mask=mask)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_leading_dimensions_are_kept(scope, lead):
    check(scope, *tensors(*lead))


def test_tensors_without_heads_and_those_that_broadcast_sum_their_gradients(scope):
    check(scope, *(x.detach()[0].requires_grad_() for x in tensors()))
    q, k, v = tensors(3)
    check(scope, q, *(x.detach()[:1].requires_grad_() for x in (k, v)))


def test_tensors_may_lie_anyhow_in_memory(scope):
    inputs = tensors(2)
    with scope:
        out = SDPA(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs))
    found = torch.autograd.grad(out.sum(), inputs)  # whose gradient of out is one number, expanded
    for x, y in zip(found, torch.autograd.grad(SDPA(*inputs).sum(), inputs)):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-5)


def test_only_what_requires_a_gradient_gets_one(scope):
    q, k, v = tensors(1)
    k.requires_grad_(False)
    with scope:
        SDPA(q, k, v).sum().backward()
    assert q.grad is not None and k.grad is None and v.grad is not None


def test_a_graph_that_is_kept_is_served_again(scope):
    q, k, v = tensors(1)
    with scope:
        loss = SDPA(q, k, v).sum()
    loss.backward(retain_graph=True)
    once = q.grad.clone()
    loss.backward()
    torch.testing.assert_close(q.grad, 2 * once)
    assert (scope.calls, scope.backward_calls) == (1, 2)


def test_without_gradients_there_is_no_backward(scope):
    q, k, v = tensors(1)
    with scope:
        assert not SDPA(*(x.detach() for x in (q, k, v))).requires_grad
        with torch.no_grad():
            assert not SDPA(q, k, v).requires_grad
    assert scope.calls == 2


def test_learned_sinks_get_their_gradient(client):
    q, k, v = tensors(2, dtype=torch.float64)
    learned = torch.tensor([0.5, -1, 2, 0], requires_grad=True)
    scope = ringserve.torch.context_parallel(client, sink_logits=learned, workers=2)
    with scope:
        found = gradients(SDPA(q, k, v), (q, k, v, learned))
    scores = torch.cat((q @ k.mT / q.shape[-1] ** 0.5, learned.double().view(4, 1, 1).expand(2, 4, 33, 1)), -1)
    for x, y in zip(found, gradients(scores.softmax(-1)[..., :-1] @ v, (q, k, v, learned))):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    with scope:  # alone, they suffice
        out = SDPA(*(x.detach() for x in (q, k, v)))
    torch.testing.assert_close(gradients(out, (learned,)), found[3:])


def test_autocast_acts_as_without_the_scope(scope):
    inputs = tensors(1)
    with torch.autocast("cpu", torch.bfloat16):
        check(scope, *inputs, tolerance=1e-1)


def test_backward_may_run_in_another_thread(scope):
    q, k, v = tensors(1)
    with scope:
        loss = SDPA(q, k, v).sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert q.grad is not None and scope.backward_calls == 1


def test_each_backward_belongs_to_the_scope_that_served_the_forward(client):
    outer, inner = (ringserve.torch.context_parallel(client, mask=mask, workers=2) for mask in (None, masks.causal()))
    inputs = tensors(1)
    with outer:
        with inner:
            causal = SDPA(*inputs)
        full = SDPA(*inputs)
        found = gradients(causal, inputs)
        assert (outer.backward_calls, inner.backward_calls) == (0, 1)
    gradients(full, inputs)
    assert (outer.calls, inner.calls, outer.backward_calls, inner.backward_calls) == (1, 1, 1, 1)
    for x, y in zip(found, gradients(SDPA(*inputs, is_causal=True), inputs)):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-5)


def assert_nothing_is_patched(scope):
    before = scope.calls, scope.backward_calls
    assert torch._C._len_torch_function_stack() == 0
    gradients(SDPA(*(inputs := tensors(1))), inputs)
    assert (scope.calls, scope.backward_calls) == before


def test_an_exception_leaves_nothing_behind(scope):
    with pytest.raises(KeyError), scope:
        SDPA(*tensors(1))
        raise KeyError
    assert_nothing_is_patched(scope)


def gone(requests, context, attempt):
    upload(requests)
    yield accepted()
    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def first_key(requests, context, attempt):
    """Answers out = q, lse = 0."""
    q = bytes(upload(requests)["q"])
    yield accepted()
    yield chunk("out", 0, q)
    yield chunk("lse", 0, bytes(len(q) // 16))
    yield statistics()


def test_a_server_that_goes_in_the_middle_of_forward_is_a_clear_exception(fake_server):
    with ringserve.Client(fake_server(gone).address) as client:
        scope = ringserve.torch.context_parallel(client, max_attempts=1)
        with pytest.raises(errors.UnavailableError, match="gone"), scope:
            SDPA(*tensors(1))
        assert scope.calls == 0
    assert_nothing_is_patched(scope)


def test_a_server_that_goes_in_the_middle_of_backward_is_a_clear_exception(fake_server):
    q, k, v = tensors(1)
    with ringserve.Client(fake_server(first_key, backward=gone).address) as client:
        scope = ringserve.torch.context_parallel(client, max_attempts=1)
        with pytest.raises(errors.UnavailableError, match="gone"), scope:
            SDPA(q, k, v).sum().backward()
    assert q.grad is None and (scope.calls, scope.backward_calls) == (1, 0)
    assert_nothing_is_patched(scope)


def test_a_cluster_that_ended_before_backward_is_a_clear_exception():
    q, k, v = tensors(1)
    with ringserve.local_cluster(workers=1, threads=1) as cluster:
        scope = ringserve.torch.context_parallel(ringserve.Client(cluster.address), max_attempts=1)
        with scope:
            loss = SDPA(q, k, v).sum()
    with pytest.raises(errors.UnavailableError):
        loss.backward()
    scope._client.close()
    with pytest.raises(errors.InvalidArgumentError, match="closed"):
        loss.backward()
    assert_nothing_is_patched(scope)


@pytest.mark.parametrize("shown", [torch.randn(33, 33), torch.rand(4, 33, 33) < 0.5])
def test_what_changes_before_backward_is_noticed(scope, shown):
    q, k, v = tensors(1)
    for changed in (k, shown):
        with scope:
            out = SDPA(q, k, v, attn_mask=shown)
        with torch.no_grad():
            changed[..., 0] = 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    assert scope.backward_calls == 0


def test_a_second_derivative_is_refused_and_only_that(scope):
    q, k, v = tensors(1)
    with scope:
        out = SDPA(q, k, v)
    (first,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(errors.UnimplementedError, match="differentiated twice"):
        first.sum().backward()


@pytest.mark.parametrize("arguments, options, says", [
    ({"attn_mask": torch.zeros(33, 33, requires_grad=True)}, {}, "attn_mask requires a gradient"),
    ({}, {"rotate": "pass-q"}, "pass-q"),
    ({"dropout_p": 0.1}, {}, "dropout_p"),
])
def test_what_is_not_served_is_refused_or_runs_locally(client, arguments, options, says):
    q, k, v = tensors(1)
    scope = ringserve.torch.context_parallel(client, **options)
    with scope, pytest.raises(errors.UnimplementedError, match=says):
        SDPA(q, k, v, **arguments)
    local = ringserve.torch.context_parallel(client, local_fallback=True, **options)
    with local, pytest.warns(UserWarning, match=says) as told:
        for _ in range(2):
            SDPA(q, k, v, **arguments).sum().backward()
    assert len(told) == 1 and q.grad is not None and (local.calls, local.backward_calls) == (0, 0)


@pytest.mark.parametrize("name, shape", [("bias", (1, 1, 33, 33)), ("alibi_slopes", (4,))])
def test_an_extra_that_requires_a_gradient_is_refused(client, name, shape):
    with ringserve.torch.context_parallel(client, **{name: torch.zeros(shape, requires_grad=True)}):
        with pytest.raises(errors.UnimplementedError, match=f"{name} requires a gradient"):
            SDPA(*tensors(1))


def test_forward_mode_is_refused(scope):
    x = torch.randn(1, 4, 33, 16)
    with torch.autograd.forward_ad.dual_level(), scope, pytest.raises(errors.UnimplementedError, match="tangent"):
        SDPA(torch.autograd.forward_ad.make_dual(x, x), x, x)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_inside_the_scope_is_served_twice(scope, use_reentrant):
    q, k, v = tensors(1)
    with scope:
        torch.utils.checkpoint.checkpoint(SDPA, q, k, v, use_reentrant=use_reentrant).sum().backward()
    assert (scope.calls, scope.backward_calls) == (2, 1)
    found, q.grad = q.grad, None
    SDPA(q, k, v).sum().backward()
    torch.testing.assert_close(found, q.grad, rtol=0, atol=2e-5)


def test_a_compiled_function_has_a_backward(scope):
    compiled = torch.compile(lambda q, k, v: SDPA(2 * q, k, v), backend="eager")
    inputs = tensors(1)
    with scope:
        found = gradients(compiled(*inputs), inputs)
    assert (scope.calls, scope.backward_calls) == (1, 1)
    for x, y in zip(found, gradients(SDPA(2 * inputs[0], *inputs[1:]), inputs)):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-5)


def test_functional_gradients_are_served(scope):
    q, k, v = (x.detach() for x in tensors(1))
    with scope:
        found = torch.func.grad(lambda q: SDPA(q, k, v).sin().sum())(q)
    expected = torch.func.grad(lambda q: SDPA(q, k, v).sin().sum())(q)
    assert (scope.calls, scope.backward_calls) == (1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
