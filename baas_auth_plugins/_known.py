"""What this process knows of one token: the token itself, the pauses after failures, the brake on rejections.

State without flows: what changes it is called with the lock held, and nothing comes between. The rules:

- `token` is read without the lock, and only ever replaced.
- A late success never overwrites a newer token.
- A token that was dropped is never taken back from a cache, nor one that was minted before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ._brake import Brake
from ._cooldown import Cooldown, is_refusal
from ._record import Record
from ._token import Instant, Token
from .exceptions import TokenEndpointError

__all__ = ["Known", "is_past"]

_REMEMBERED = 4
_SAME_MOMENT = 0.1  # seconds: what is told of a token's age by way of a cache is not exact


class Known:
    """One source's state."""

    __slots__ = ("_dropped", "brake", "cooldown", "token")

    def __init__(self) -> None:
        self.token: Token | None = None
        self.cooldown = Cooldown()
        self.brake = Brake()
        self._dropped: Sequence[Token] = ()  # of late; the latest is last

    def landed(self, token: Token, found: Record | None, rest: float, now: Instant) -> bool:
        """Take a token that was minted here, or found in the cache; False if it comes late: somebody has a newer one.

        Args:
            token: the token.
            found: where it was found, if it was.
            rest: seconds before a token minted here may be renewed.
            now: this moment.
        """
        if self.token is not None and token.monotonic < self.token.monotonic:
            return False
        self.cooldown.clear()
        if found is not None:
            self.adopt(token, found)
        else:
            if self.token is None:  # what replaces one that lives is no consequence of a rejection
                self.brake.minted(token, now)
            self.token = token
            self.cooldown.rest(rest, now)
        return True

    def adopt(self, token: Token, found: Record) -> None:
        """Take a token from another process, with how it stands."""
        self.token = token
        self.brake.adopted(token, found)

    def drop(self, token: Token) -> None:
        """Forget a token, and see to it that it is not taken from the cache again, however slow that is to delete it."""
        if token not in self._dropped:
            self._dropped = sorted((*self._dropped, token), key=lambda dropped: dropped.monotonic)[-_REMEMBERED:]
        if self.token is token:
            self.token = None

    def is_past(self, found: Token, now: Instant) -> bool:
        """Tell whether a token was dropped here, or minted before one that was."""
        if not self._dropped:
            return False
        known = any(found.access_token == dropped.access_token for dropped in self._dropped)
        return known or is_past(found, self._dropped[-1], now)

    def learn(self, record: Record, now: Instant) -> None:
        """Take over what another process ran into."""
        self.cooldown.learn(record, now)
        self.brake.learn(record, now)
        token, there = self.token, record.token
        if token is not None and there is not None and token.access_token == there.access_token:
            self.adopt(token, record)

    def tell_token(self, record: Record, token: Token, now: Instant) -> Record:
        """Return the record with a token that was minted here."""
        told = record._replace(
            token=token, issued_at=token.issued_at, lost=False, failed="", failure=None, refused=False
        )
        return self.brake.tell(self.cooldown.tell(told, now), now)

    def tell_failure(self, record: Record, flight: str, error: TokenEndpointError, now: Instant) -> Record:
        """Return the record with what a flight of this process ran into."""
        told = record._replace(lost=False, failed=flight, failure=error, refused=is_refusal(error))
        return self.cooldown.tell(told, now)


def is_past(found: Token, dropped: Token, now: Instant) -> bool:
    """Tell whether a token is the one that was dropped, or one that was minted before it."""
    age = now.monotonic - found.monotonic  # by this clock alone: the wall clock of the host that minted it may be wrong
    return found.access_token == dropped.access_token or age > dropped.age(now) + _SAME_MOMENT
