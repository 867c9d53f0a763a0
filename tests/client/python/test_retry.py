"""What is tried again, and what is not; broken answers. Against a server that does what the test says."""
import threading

import grpc
import numpy as np
import pytest

import ringserve
from conftest import accepted, chunk, echo, statistics, upload
from ringserve import errors

TENSORS = tuple(np.random.default_rng(0).standard_normal((1, 2, 50, 8)).astype(np.float32) for _ in range(3))


def failing(code, message="failed", retry_after_ms=None, after_accepting=False, attempts=1):
    """Fails the first attempts, then answers out = q."""

    def script(requests, context, attempt):
        if attempt > attempts:
            yield from echo(requests, context, attempt)
            return
        upload(requests)
        if after_accepting:
            yield accepted()
        if retry_after_ms is not None:
            context.set_trailing_metadata((("ringserve-retry-after-ms", retry_after_ms),))
        context.abort(code, message)

    return script


def attend(server, **options):
    with ringserve.Client(server.address) as client:
        return client.attend(*TENSORS, **options)


def test_an_answer_that_comes_backwards_is_put_in_place(fake_server):
    result = attend(fake_server(echo))
    np.testing.assert_array_equal(result.out, TENSORS[0])
    assert result.attempts == 1


@pytest.mark.parametrize("script", [
    failing(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms="10"),
    failing(grpc.StatusCode.UNAVAILABLE, retry_after_ms="10"),
    failing(grpc.StatusCode.UNAVAILABLE, after_accepting=True),
    failing(grpc.StatusCode.CANCELLED),
], ids=["queue full", "worker lost, pushback", "connection lost during the job", "server shuts down"])
def test_what_is_worth_it_is_tried_again_under_another_id(fake_server, script):
    server = fake_server(script)
    told = []
    result = attend(server, request_id="mine", on_retry=lambda attempt, why: told.append((attempt, why.status)))
    np.testing.assert_array_equal(result.out, TENSORS[0])
    assert result.attempts == 2 and told[0][0] == 2
    assert [server.headers.get().request_id for _ in range(2)] == ["mine", "mine-retry1"]


@pytest.mark.parametrize("code, kind", [
    (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgumentError),
    (grpc.StatusCode.UNIMPLEMENTED, errors.UnimplementedError),
    (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPreconditionError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError),
    (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
    (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
    (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
    (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDeniedError),
    (grpc.StatusCode.INTERNAL, errors.InternalError),
    (grpc.StatusCode.DATA_LOSS, errors.RingserveError),
])
def test_anything_else_is_raised_as_its_class_at_once(fake_server, code, kind):
    server = fake_server(failing(code, "because"))
    with pytest.raises(kind, match="because") as raised:
        attend(server)
    assert raised.value.status == code.name and raised.value.attempts == 1
    assert server.calls == 1


def test_the_last_attempts_error_is_raised(fake_server):
    server = fake_server(failing(grpc.StatusCode.UNAVAILABLE, retry_after_ms="1", attempts=100))
    with pytest.raises(errors.UnavailableError) as raised:
        attend(server, max_attempts=3)
    assert server.calls == raised.value.attempts == 3
    assert raised.value.retry_after == 0.001


def test_no_retry_begins_that_the_deadline_forbids(fake_server):
    server = fake_server(failing(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms="60000"))
    with pytest.raises(errors.ResourceExhaustedError):
        attend(server, deadline=20)
    assert server.calls == 1


def test_a_client_that_is_closed_cancels_what_runs(fake_server):
    started, ended = threading.Event(), threading.Event()

    def silent(requests, context, attempt):
        context.add_callback(ended.set)
        yield accepted()
        started.set()
        ended.wait(60)

    client = ringserve.Client(fake_server(silent).address)
    closer = threading.Thread(target=lambda: started.wait(30) and client.close())
    closer.start()
    with pytest.raises(errors.CancelledError):
        client.attend(*TENSORS)
    closer.join()
    assert ended.wait(30)


def test_a_pushback_that_is_no_number_is_none(fake_server):
    server = fake_server(failing(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms="soon"))
    with pytest.raises(errors.ResourceExhaustedError):
        attend(server)
    assert server.calls == 1


def test_a_server_that_does_not_answer_meets_the_deadline(fake_server):
    ended = threading.Event()

    def silent(requests, context, attempt):
        context.add_callback(ended.set)
        yield accepted()
        ended.wait(60)

    with pytest.raises(errors.DeadlineExceededError, match="no answer within 0.5 s") as raised:
        attend(fake_server(silent), deadline=0.5)
    assert isinstance(raised.value, TimeoutError)


@pytest.mark.parametrize("broken, says", [
    ([accepted(), chunk("lse", 0, b"x")], "not asked for"),
    ([accepted(), statistics()], "bytes of the result are missing"),
    ([accepted()], "no statistics"),
    ([b"\xff"], "malformed"),
])
def test_a_broken_answer_is_an_internal_error(fake_server, broken, says):
    def script(requests, context, attempt):
        upload(requests)
        yield from broken

    with pytest.raises(errors.InternalError, match=says):
        attend(fake_server(script))


def test_a_broken_answer_ends_the_call_at_the_server_too(fake_server):
    ended = threading.Event()

    def script(requests, context, attempt):
        context.add_callback(ended.set)
        yield chunk("out", 0, b"x")
        ended.wait(60)

    with ringserve.Client(fake_server(script).address) as client:
        with pytest.raises(errors.InternalError, match="before it accepted") as raised:
            client.attend(*TENSORS)
        assert ended.wait(15), raised


def test_a_server_that_went_away_for_good_is_waited_for_no_longer_than_said(fake_server):
    servers = []

    def script(requests, context, attempt):
        context.set_trailing_metadata((("ringserve-retry-after-ms", "300"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    servers.append(fake_server(script))
    with ringserve.Client(servers[0].address, connect_timeout=0.5) as client:
        with pytest.raises(errors.UnavailableError, match="no connection to .* within 0.5 s") as raised:
            client.attend(*TENSORS, on_retry=lambda attempt, why: servers[0].stop(), max_attempts=2)
    assert raised.value.attempts == 2


def test_a_server_that_comes_back_is_found_again(fake_server):
    first = fake_server(failing(grpc.StatusCode.UNAVAILABLE, retry_after_ms="1"))
    timer = []

    def restart(attempt, why):
        first.stop()
        timer.append(threading.Timer(0.4, lambda: fake_server(echo, first.address)))
        timer[0].start()

    result = attend(first, on_retry=restart)
    timer[0].join()
    np.testing.assert_array_equal(result.out, TENSORS[0])
    assert result.attempts == 2


def test_a_server_that_is_being_replaced_is_waited_for(fake_server):
    servers = [fake_server(failing(grpc.StatusCode.UNAVAILABLE, "draining", attempts=100))]

    def replace(attempt, why):
        if attempt == 3:
            servers[0].stop()
        if attempt == 5:
            servers.append(fake_server(failing(grpc.StatusCode.UNAVAILABLE, "no workers", attempts=2), servers[0].address))

    with ringserve.Client(servers[0].address, connect_timeout=0.2) as client:
        result = client.attend(*TENSORS, max_attempts=1, wait_for_ready=60, on_retry=replace)
    np.testing.assert_array_equal(result.out, TENSORS[0])
    assert servers[1].calls == 3


def test_a_server_that_does_not_get_ready_is_waited_for_no_longer_than_said(fake_server):
    server = fake_server(failing(grpc.StatusCode.UNAVAILABLE, "no workers", attempts=1000))
    with pytest.raises(errors.UnavailableError, match="no workers"):
        attend(server, wait_for_ready=0.3)
    assert server.calls > 1
    full = fake_server(failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large"))
    with pytest.raises(errors.ResourceExhaustedError):
        attend(full, wait_for_ready=60)
    assert full.calls == 1


def test_a_server_that_is_not_there_is_named_with_the_reason_after_the_wait():
    told = []
    with ringserve.Client("127.0.0.1:1", connect_timeout=60) as client:
        with pytest.raises(errors.UnavailableError, match="Connection refused") as raised:
            client.attend(*TENSORS, wait_for_ready=1, on_retry=lambda attempt, why: told.append(str(why)))
    assert all("Connection refused" in why for why in told)
    assert 2 <= raised.value.attempts <= 5  # a second, at four attempts a second


def test_no_readiness_is_waited_for_after_the_loss_of_a_job_that_was_accepted(fake_server):
    server = fake_server(failing(grpc.StatusCode.UNAVAILABLE, "worker w1 was lost", after_accepting=True, attempts=1000))
    with pytest.raises(errors.UnavailableError, match="worker w1 was lost") as raised:
        attend(server, deadline=10, max_attempts=3, wait_for_ready=9)
    assert server.calls == raised.value.attempts == 3


def test_no_attempt_that_waited_for_readiness_counts_as_a_retry(fake_server):
    unready = failing(grpc.StatusCode.UNAVAILABLE, "no workers", attempts=6)
    full = failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", retry_after_ms="10", attempts=7)
    server = fake_server(lambda requests, context, attempt: (unready if attempt <= 6 else full)(requests, context, attempt))
    assert attend(server, wait_for_ready=60).attempts == 8
