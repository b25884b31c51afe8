"""When a client repeats a call that failed, and after how long.

A call is repeated only if that cannot do anything twice:

- 429 says that the server has not begun with it, and a connection that was refused brought it to nobody: always;
- 503, and a connection that broke: only a call that changes nothing, or the same thing again.

A timeout once it is connected is not repeated: the server is at work, and the same question again would add to it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from seisbind.model.errors import ServerRefused

FIRST_S = 0.25  # the first pause where the server names none; each further one is twice as long
MOST_S = 30.0  # a server that wants more is told of, not waited for
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout)
BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError)


@dataclass(frozen=True, slots=True)
class Retries:
    """``times``: most repetitions of one call."""

    times: int

    def wait_s(self, error: Exception, tried: int, *, repeatable: bool) -> float | None:
        """Seconds to wait before the call is repeated; None if it is not.

        Args:
            error: how it ended.
            tried: repetitions so far.
            repeatable: whether it may have been carried out and be sent again all the same.
        """
        if tried >= self.times:
            return None
        apart = random.uniform(0.5, 1.0)  # so that many clients do not come together
        pause: float = min(FIRST_S * 2**tried, MOST_S) * apart
        if isinstance(error, ServerRefused):
            if error.status != 429 and not (error.status == 503 and repeatable):
                return None
            asked = error.retry_after_s or 0.0
            return None if asked > MOST_S else asked + pause
        if isinstance(error, UNSENT) or (isinstance(error, BROKEN) and repeatable):
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
