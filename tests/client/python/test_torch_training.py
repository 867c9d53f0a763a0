"""Models that train through the scope, as they do locally."""
import threading

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not importable: ./dev setup --pytorch brings it")

import ringserve  # noqa: E402
import ringserve.torch  # noqa: E402

SDPA = torch.nn.functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Model(torch.nn.Module):
    """Two layers of causal attention with grouped queries, each with a residual."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 64) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            q, k, v = layer(x).unflatten(-1, (8, 8)).transpose(1, 2).split((4, 2, 2), 1)
            x = x + SDPA(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)
        return x


def step(model, x, *, scope=None):
    """One step of training; the loss."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if scope is None:
        loss = (model(x) ** 2).mean()
    else:
        with scope:
            loss = (model(x) ** 2).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def models():
    local, served = Model().double(), Model().double()
    served.load_state_dict(local.state_dict())
    return local, served


def assert_same(local, served):
    for x, y in zip(local.parameters(), served.parameters()):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-11)
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-11)


def test_training_is_the_same_as_locally(scope):
    local, served = models()
    for _ in range(3):
        x = torch.randn(2, 20, 32, dtype=torch.float64)
        assert step(served, x, scope=scope) == pytest.approx(step(local, x), abs=1e-11)
    assert_same(local, served)
    assert (scope.calls, scope.backward_calls) == (6, 6)
    assert scope.backward_statistics.plan.workers == 2


def test_a_module_with_a_scope_of_its_own_trains(client):
    local, served = models()
    wrapped = ringserve.torch.ContextParallel(served, client, workers=2)
    x = torch.randn(2, 20, 32, dtype=torch.float64)
    assert step(wrapped, x) == pytest.approx(step(local, x), abs=1e-11)
    assert_same(local, served)
    assert wrapped.scope.backward_calls == 2


def test_an_encoder_of_pytorchs_trains(scope):
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0, batch_first=True)
    local = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    x, padding = torch.randn(2, 20, 32, dtype=torch.float64), torch.arange(20).expand(2, 20) >= torch.tensor([[20], [15]])

    def found(model):
        return torch.autograd.grad((model(x, src_key_padding_mask=padding) ** 2)[0].sum(), tuple(model.parameters()))

    expected = found(local)
    with scope:
        served = found(local)
    assert (scope.calls, scope.backward_calls) == (2, 2)
    for a, b in zip(served, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_two_threads_one_inside_and_one_outside(scope):
    local, served = models()
    x = torch.randn(2, 20, 32, dtype=torch.float64)
    inside, outside = threading.Barrier(2), threading.Barrier(2)

    def elsewhere():
        inside.wait(30)
        step(local, x)
        outside.wait(30)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with scope:
        inside.wait(30)
        outside.wait(30)
        assert scope.calls == 0
        step(served, x)
    thread.join()
    assert (scope.calls, scope.backward_calls) == (2, 2)
    assert_same(local, served)
