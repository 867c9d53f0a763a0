"""The client for asyncio: the same answers, the same errors, and tasks that can be cancelled."""
import asyncio
import threading
import time

import grpc
import numpy as np
import pytest

import ringserve
import ringserve.aio
from conftest import accepted, echo, upload
from ringserve import errors, masks

TENSORS = tuple(np.random.default_rng(0).standard_normal((1, 2, 50, 8)).astype(np.float32) for _ in range(3))


def run(address, use):
    async def main():
        async with ringserve.aio.Client(address) as client:
            return await use(client)

    return asyncio.run(main())


def test_answers_as_the_blocking_client_does(cluster, client):
    expected = client.attend(*TENSORS, mask=masks.causal(), return_lse=True, workers=2)

    async def use(client):
        return await asyncio.gather(*(client.attend(*TENSORS, mask=masks.causal(), return_lse=True, workers=2)
                                      for _ in range(4)))

    for result in run(cluster.address, use):
        np.testing.assert_array_equal(result.out, expected.out)
        np.testing.assert_array_equal(result.lse, expected.lse)


def test_megabytes_do_not_stop_the_event_loop(cluster):
    q = np.random.default_rng(0).standard_normal((1, 8, 4000, 64)).astype(np.float32)

    async def use(client):
        turns, call = 0, asyncio.ensure_future(client.attend(q, q, q, mask=masks.window(0, 0), workers=2))
        while not call.done():
            await asyncio.sleep(0)
            turns += 1
        return turns, (await call).out

    turns, out = run(cluster.address, use)
    assert turns > 20
    np.testing.assert_allclose(out, q, atol=1e-6)


def test_plan_and_status(cluster):
    async def use(client):
        return await client.plan(ringserve.Spec(q_heads=2, q_len=64, head_dim=8), workers=4), await client.status()

    plan, status = run(cluster.address, use)
    assert plan.workers == 4 and len(status.workers) == 2


def test_errors_have_the_same_classes(cluster):
    with pytest.raises(errors.UnavailableError, match="workers"):
        run(cluster.address, lambda client: client.attend(*TENSORS, workers=3))
    with pytest.raises(errors.InvalidArgumentError, match="balancer"):
        run(cluster.address, lambda client: client.attend(*TENSORS, balancer="best"))
    with pytest.raises(errors.UnavailableError):
        run("127.0.0.1:1", lambda client: client.status())


def test_a_lost_worker_is_tried_again(fake_server):
    def script(requests, context, attempt):
        if attempt == 1:
            context.set_trailing_metadata((("ringserve-retry-after-ms", "1"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "worker lost")
        yield from echo(requests, context, attempt)

    result = run(fake_server(script).address, lambda client: client.attend(*TENSORS))
    assert result.attempts == 2
    np.testing.assert_array_equal(result.out, TENSORS[0])


def test_a_cancelled_task_cancels_the_call(fake_server):
    started, ended = threading.Event(), threading.Event()

    def silent(requests, context, attempt):
        context.add_callback(ended.set)
        upload(requests)
        yield accepted()
        started.set()
        ended.wait(60)

    async def use(client):
        call = asyncio.ensure_future(client.attend(*TENSORS))
        await asyncio.get_running_loop().run_in_executor(None, started.wait, 30)
        call.cancel()
        begin = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.get_running_loop().run_in_executor(None, ended.wait, 30)
        return time.monotonic() - begin

    assert run(fake_server(silent).address, use) < 15  # of the 60 that the server would take


def test_a_broken_answer_is_an_internal_error(fake_server):
    def script(requests, context, attempt):
        upload(requests)
        yield accepted()

    with pytest.raises(errors.InternalError, match="no statistics"):
        run(fake_server(script).address, lambda client: client.attend(*TENSORS))


def test_a_server_that_comes_back_is_found_again_and_one_that_does_not_is_given_up(fake_server):
    def script(requests, context, attempt):
        context.set_trailing_metadata((("ringserve-retry-after-ms", "1"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    first = fake_server(script)
    timer = threading.Timer(0.4, lambda: fake_server(echo, first.address))

    def restart(attempt, why):
        first.stop()
        timer.start()

    result = run(first.address, lambda client: client.attend(*TENSORS, on_retry=restart))
    timer.join()
    np.testing.assert_array_equal(result.out, TENSORS[0])

    gone = fake_server(script)

    async def use():
        async with ringserve.aio.Client(gone.address, connect_timeout=0.5) as client:
            await client.attend(*TENSORS, on_retry=lambda attempt, why: gone.stop(), max_attempts=2)

    with pytest.raises(errors.UnavailableError, match="no connection to .* within 0.5 s"):
        asyncio.run(use())
