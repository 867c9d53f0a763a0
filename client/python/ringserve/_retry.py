"""When is a failed attempt worth another one? Pure decisions; as client/retry.cc."""
from __future__ import annotations

from .errors import RingserveError, UnavailableError

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 5.0  # seconds
_READY_INTERVAL = 0.25  # between attempts at a server that is not ready


def retry_delay(error: RingserveError, accepted: bool, failures: int) -> float | None:
    """Seconds to wait before the next attempt, or nothing where `error` would come again.

    `failures`: how many attempts have failed, with this one. `accepted`: the server had taken this call's job in some
    attempt, so that UNAVAILABLE means a loss on the way and not a request that cannot be met.
    """
    backoff: float = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(failures - 1, 10))
    if error.retry_after is not None:
        # The server's word counts; but one that keeps failing gets more time each round.
        return max(error.retry_after, 0 if failures == 1 else backoff / 2)
    return backoff if accepted and isinstance(error, UnavailableError) else None


class Retries:
    """The failed attempts of one call.

    One that was UNAVAILABLE before the server had taken the job found no server that is ready: those are limited in
    time, where the call waits for readiness. All others are limited in number.
    """

    def __init__(self, max_attempts: int, wait_for_ready: float) -> None:
        self._max_attempts, self._wait_for_ready = max_attempts, wait_for_ready
        self._failures = 0  # limited in number
        self._accepted = False  # in some attempt
        # Until when the server may get ready; None where the last attempt did not find it unready.
        self.ready_by: float | None = None

    def delay_after(self, error: RingserveError, accepted: bool, now: float) -> float | None:
        """Seconds to wait before the next attempt, or nothing where `error` is the call's last word.

        `accepted`: the server had taken the job in the attempt that ended with it.
        """
        self._accepted = self._accepted or accepted
        unready = not accepted and isinstance(error, UnavailableError)
        if not unready or self._wait_for_ready == 0:
            self.ready_by = None
        elif self.ready_by is None:
            self.ready_by = now + self._wait_for_ready
        if self.ready_by is not None and now < self.ready_by:
            return max(_READY_INTERVAL, error.retry_after or 0)
        self._failures += 1
        if self._failures >= self._max_attempts:
            return None
        return retry_delay(error, self._accepted, self._failures)
