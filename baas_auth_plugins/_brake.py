"""The brake on mints that rejections (401) cause, where a new token is no remedy.

A token that was minted after a rejection is on probation, until the API accepts it from the very caller
that had it minted. If it is rejected instead, the account or the path is at fault: mints on
account of rejections then wait, longer each time, until 60 s go by without one.
"""

from __future__ import annotations

from ._cooldown import NO_PAUSE, Pause, step
from ._record import Record
from ._token import Instant, Token

__all__ = ["Brake"]

_SCHEDULE = (5.0, 10.0, 20.0, 40.0, 60.0)
_FORGETS = 60.0
_NEVER = Instant(float("-inf"), float("-inf"))


class Brake:
    """The rejections of one source's tokens. What changes them is called with the lock held."""

    __slots__ = ("_braked_for", "_is_hearsay", "_on_probation", "_pause", "_rejected_at", "_times", "is_news")

    def __init__(self) -> None:
        self.is_news = False  # to the fleet
        self._pause = NO_PAUSE
        self._times = 0
        self._braked_for: Token | None = None  # rejected although it was fresh
        self._on_probation: Token | None = None
        self._is_hearsay = False  # whether that is known from another process only
        self._rejected_at = _NEVER

    def left(self, now: Instant) -> float:
        """Return the seconds before a rejection may cause a mint again."""
        return self._pause.left(now)

    def note_moment(self, now: Instant) -> None:
        """Take note that some token is rejected now."""
        if now.since(self._rejected_at) > _FORGETS:
            self._times, self._on_probation = 0, None
        self._rejected_at = now

    def note_rejection(self, token: Token, now: Instant) -> None:
        """Take note that this token is rejected."""
        self.note_moment(now)
        if token is self._on_probation:
            self._put_on(token, now)

    def note_rejected_replay(self, token: Token, now: Instant) -> None:
        """Take note that this token, which replaced a rejected one, is rejected as well."""
        self.note_rejection(token, now)
        if token is not self._braked_for and token.age(now) < _FORGETS:  # an older one has served its time elsewhere
            self._put_on(token, now)

    def _put_on(self, token: Token, now: Instant) -> None:
        self._pause = Pause(now, step(_SCHEDULE, self._times))
        self._times += 1
        self._braked_for, self._on_probation = token, None
        self.is_news = True

    def come_off(self, token: Token) -> None:
        """Take note that this token was accepted from the very caller that had it minted."""
        if token is not self._braked_for:
            self.is_news = bool(self._times or self._on_probation)
            self._times, self._pause, self._on_probation = 0, NO_PAUSE, None

    def minted(self, token: Token, now: Instant) -> None:
        """Put a new token on probation, if there was a rejection of late."""
        if now.since(self._rejected_at) < _FORGETS:
            self._on_probation, self._is_hearsay = token, False

    def adopted(self, token: Token, found: Record) -> None:
        """Take over how another process's token stands."""
        self._on_probation, self._is_hearsay = token if found.on_probation else None, True
        if found.braked and found.rejected < _FORGETS and not found.on_probation:
            self._braked_for = token

    def learn(self, record: Record, now: Instant) -> None:
        """Take over what rejections other processes saw."""
        if self._is_hearsay:  # and so no more than what the record says of its token
            self._on_probation = None
        if record.brake > self.left(now):
            self._pause, self._times = Pause(now, record.brake), record.braked
        if record.rejected < now.since(self._rejected_at):
            self._rejected_at = Instant(now.wall - record.rejected, now.monotonic - record.rejected)

    def tell(self, record: Record, now: Instant) -> Record:
        """Return the record with how things stand here."""
        here, there = self._on_probation, record.token
        return record._replace(
            on_probation=here is not None and there is not None and here.access_token == there.access_token,
            brake=self.left(now),
            braked=self._times,
            rejected=now.since(self._rejected_at),
        )
