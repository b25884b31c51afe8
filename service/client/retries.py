"""When a client repeats a call that failed, and after how long.

A call is repeated only if that cannot do anything twice:

- always after 429, with which the server has not begun the call, and after a refused connection;
- after 503 or a broken connection only if the call changes nothing, or the same thing again.

A timeout once it is connected is not repeated: the server is at work, and the same request again would add to it.

Written here because libraries for retries (stamina, tenacity) decide by exception: that a call may be repeated, that a
``Retry-After`` is added to the pause or ends the attempts, and that a stream begins to count anew with each answer
would all be callbacks, as long as this module.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from seisbind.model.errors import ServerRefused, ServerUnreachable

FIRST_S = 0.25  # the first pause where the server names none; each further one is twice as long
MAX_S = 30.0  # a server that wants a longer pause is not waited for: the call fails
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout)
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError)


class Attempts:
    """The attempts at one call.

    Args:
        url: of the server.
        retries: repetitions, at most.
        repeatable: whether the call may have been carried out and be sent again all the same.
    """

    def __init__(self, url: str, retries: int, *, repeatable: bool) -> None:
        self._url = url
        self._retries = retries
        self._repeatable = repeatable
        self._repeated = 0

    def succeeded(self) -> None:
        """Count anew: a part of the call was answered."""
        self._repeated = 0

    def failed(self, error: Exception) -> float:
        """Seconds to wait before the call is sent again.

        Raises:
            ServerUnreachable, ServerRefused: it is not sent again, because of ``error``.
        """
        wait_s = self.wait_s(error) if self._repeated < self._retries else None
        if wait_s is not None:
            self._repeated += 1
            return wait_s
        if isinstance(error, httpx.RequestError):
            what = str(error) or type(error).__name__  # timeouts have no words
            raise ServerUnreachable(
                f"No answer from {self._url} ({what}). Is the server running? 'seisbind serve' starts one."
            ) from error
        raise error

    def wait_s(self, error: Exception) -> float | None:
        """Seconds to wait after ``error``; None if such a call is not repeated after it."""
        jitter = random.uniform(0.5, 1.0)  # so that many clients do not come together
        pause: float = min(FIRST_S * 2**self._repeated, MAX_S) * jitter
        if isinstance(error, ServerRefused):
            if error.status != 429 and not (error.status == 503 and self._repeatable):
                return None
            asked = error.retry_after_s or 0.0
            return None if asked > MAX_S else asked + pause
        if isinstance(error, UNSENT) or (isinstance(error, BROKEN) and self._repeatable):
            return pause
        return None


def retry_after_s(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None if there is none that can be read."""
    if header is None:
        return None
    if header.isascii() and header.strip().isdecimal():
        return float(header)
    try:
        then = parsedate_to_datetime(header)
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())
