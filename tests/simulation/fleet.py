"""What must hold for all processes of a fleet together, while the cache that they share works.

One ledger for all, as if the fleet were one process that knows at once what each of its callers was told. What
is not so while the cache fails, nor for a while after: then each process goes by its own ledger only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from baas_auth_plugins._flow import Call, Sleep, TokenRequest
from baas_auth_plugins._record import Record
from baas_auth_plugins._seal import Seal
from baas_auth_plugins._token import Instant

from .gateway import Gateway, Key, Reply
from .ledger import INEXACT, Book, Endpoint, Known
from .world import Moment, World

if TYPE_CHECKING:
    from .callers import Caller
    from .process import Process

__all__ = ["FleetReferee", "InvariantError", "Minted"]

_NEVER = float("-inf")
_TROUBLED = 150.0  # seconds for which a fault of the cache is felt: no flight lasts longer, nor any pause after it
_GIVEN_UP = 20.0  # seconds after which nobody waits any more for a leader that is gone
_TOLD = 3.0  # seconds after which what one process knows is in the cache
_POLLED = 2.5  # seconds after which whoever waits has looked again, and acted on it
_NEWER = 1.0  # seconds by which a token must live longer than another to be worth having
_ATTEMPTS = 4


class InvariantError(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


@dataclass(frozen=True)
class Minted:
    """A token, and when its request was sent: by the host that sent it, and truly."""

    access_token: str
    key: Key
    life: float
    wall: float
    true: float
    suspect: bool
    """Whether it was minted soon after a rejection."""

    def known_here(self, world: World) -> Known:
        """Return what a process on the present host knows of it: no clock makes it younger than it is."""
        now = world.now
        age = world.true - self.true
        sent = Moment(now.wall - max(age, now.wall - self.wall), now.mono - age)
        return Known(self.access_token, sent, self.life, adopted=True)


class FleetReferee:
    """Checks each event against what the fleet knows."""

    def __init__(self, world: World, limit: tuple[int, float] | None, gateway: Gateway, *, shared: bool) -> None:
        self.world = world
        self.limit = limit
        self.gateway = gateway
        self.vault: Any = None
        self.note: Callable[[str, object], None] | None = None
        """Writes a line of the trace, if there is one."""
        self.shared = shared
        self.seal: Seal | None = None
        """Opens what lies in the cache, if that never changes its seal."""
        self.processes: list[Process] = []
        """Those that are there."""
        self.checks: Counter[str] = Counter()
        self.errors: dict[int, BaseException] = {}
        self.minted: dict[str, Minted] = {}
        self.doubtful: set[str] = set()
        """Tokens that a process may take for older than they are: nothing is owed for them."""
        self.endpoint = Endpoint(limit)
        self.books: dict[Key, Book] = {}
        self.failed_true = _NEVER
        self._known: dict[str, Known] = {}
        self._troubled_until = self._vanished = self._worked = self._told = _NEVER
        self._blocked = self._forgiven = self._lied = self._unbraked = _NEVER
        self._ended = 0
        self._works = False
        self._flights = {"": 0}

    def check(self, invariant: str, holds: bool, detail: object = "") -> None:
        """Count a check; raise if it fails."""
        self.checks[invariant] += 1
        if not holds:
            raise InvariantError(invariant, str(detail))

    def active(self) -> Iterator[Caller]:
        """All callers under way."""
        return chain.from_iterable(process.referee.active for process in self.processes)

    def key_of(self, known: Known) -> Key:
        """Return whose token it is."""
        return self.minted[known.access_token].key

    def _book(self, key: Key) -> Book:
        return self.books.setdefault(key, Book())

    # Excuses.

    def trouble(self, seconds: float = 0.0) -> None:
        """Something goes wrong, now and for so many seconds, that no process can be blamed for."""
        self._troubled_until = max(self._troubled_until, self.world.mono + seconds + _TROUBLED)
        self._forgiven = self.endpoint.blocked_until
        for book in self.books.values():
            book.published = False

    def lied(self) -> None:
        """What is said of the time that things have lain in the cache is wrong."""
        self._lied = self.world.true
        self.doubtful.update(self.minted)

    @property
    def _calm(self) -> bool:
        return self.world.mono >= self._troubled_until  # whatever is under way stands still while the machines sleep

    @property
    def _doubts(self) -> bool:
        """Whether what others have told may be believed for longer than it holds."""
        return self.world.true < self._lied + _TROUBLED

    def rests(self, caller: Caller) -> bool:
        """Tell whether a process may have learned from others that a renewal is not due."""
        now, true = self.world.neutral, self.world.true
        if not self._calm or true < max(self._vanished + _GIVEN_UP, self._told + _POLLED):
            return True
        if any(other is not caller and other.waits_for_token for other in self.active()):
            return True
        books = self.books.values()
        pauses = [pause for book in books for pause in (book.pause, book.spacing, book.superseded, book.refusal)]
        return any(pause is not None and pause.holds(now, _POLLED) for pause in pauses)

    def brakes(self, caller: Caller) -> bool:
        """Tell whether a process may have learned from others that another token is no use."""
        book = self._book(self.key_of(caller.served))
        unbraked = self.world.true < self._unbraked + _POLLED
        if unbraked or not self._calm or self.minted[caller.served.access_token].suspect:
            return True
        return book.brake is not None and book.brake.holds(self.world.neutral, _POLLED)

    def refuses(self) -> bool:
        """Tell whether a process may have learned from others that it will be refused."""
        books = self.books.values()
        return any(book.refusal is not None and self.world.neutral.since(book.refusal.since) < 62 for book in books)

    def fails(self) -> bool:
        """Tell whether a flight is about to tell of its failure, or one of long ago may pass for new."""
        if self._doubts or self.world.true < self._told + _POLLED:
            return True
        return any("failing" in caller.notes for caller in self.active())

    def limits(self, now: Moment) -> bool:
        """Tell whether a caller may find that no token request can be sent just now."""
        in_flight = sum(isinstance(caller.effect, TokenRequest) for caller in self.active())
        uncertain = self.limit[0] // 2 if self.limit else 0  # whoever is gone after counting may have sent or not
        return self._doubts or self.endpoint.limits(now, in_flight, uncertain)

    # Token requests.

    def token_request(self, caller: Caller, key: Key) -> None:
        """A token request leaves."""
        caller.notes["sent truly"], caller.notes["sent neutrally"] = self.world.true, self.world.neutral
        caller.notes.setdefault("began", self.world.true)
        self._worked = self.world.true
        if not self._calm or not caller.party.process.referee.shared:
            return
        others = [
            other.name
            for other in self.active()
            if isinstance(other.effect, TokenRequest) and other is not caller and other.notes["flight"][0] == key
        ]
        self.check("at most one token request is in flight per key in the fleet", not others, (caller.name, others))
        blocked = max(self.world.mono + INEXACT, self._forgiven) < self.endpoint.blocked_until
        self.check("no process sends a token request while another's Retry-After runs", not blocked, caller.name)
        now, book = self.world.neutral, self._book(key)
        if book.refusal is not None and book.refusal.sure:
            self.check("no process tries what another was refused", not book.refusal.holds(now, -INEXACT), caller.name)
        owed = caller.notes.pop("owed", None)
        if self.world.true > self._vanished + _GIVEN_UP:  # else whoever failed may not be whom they waited for
            self.check("processes that wait share the failure", owed is None or owed != self._ended, caller.name)
        self._justified(caller, book, now)

    def _justified(self, caller: Caller, book: Book, now: Moment) -> None:
        """Check that one process would have minted, too, if it were alone and knew all that the fleet knows."""
        known, leeway = book.known, caller.party.leeway
        if known is None or known.forgotten or not book.published or known.access_token in self.doubtful:
            return
        here = self.minted[known.access_token].known_here(self.world)
        if not here.lives(self.world.now, leeway):
            return
        early = here.left(self.world.now) > here.margins(leeway)[0] + _NEWER
        if known.rejected:
            brake = book.brake if book.brake is not None and book.brake.sure else None
            if early and brake is not None and not known.dropped and caller.asked_true > book.brake_on + _TOLD:
                braked = brake.holds(now, -INEXACT)
                self.check("401-driven mints obey the brake of the fleet", not braked, caller.name)
            return
        self.check("one mint per fleet", not early, f"{caller.name}: {known}")
        for pause in (book.pause, book.spacing):
            if pause is not None and pause.sure:
                self.check("a fleet renews as seldom as one process", not pause.holds(now, -INEXACT), caller.name)

    def arrival(self) -> None:
        """A token request has reached the gateway."""
        count = self.endpoint.arrived(self.world.true)
        if self.limit is not None and self._calm:
            within = f"{count} within {self.limit[1]} s"
            self.check("the token rate limit is kept by the fleet", count <= self.limit[0], within)

    def token_request_over(self, caller: Caller, reply: Reply | None) -> None:
        """The flow was given the answer, or closed (None), and has taken its next step."""
        self._worked = self.world.true
        self.endpoint.answered.append(self.world.mono)
        if reply is not None and reply.issued is None:
            self.endpoint.told(reply, self.world.now)
            self._blocked = self.world.true

    def landed(self, caller: Caller, key: Key, known: Known, *, voluntary: bool, sure: bool) -> None:
        """A process has a new token."""
        self._ended += 1
        self._worked = self._told = self.world.true
        caller.notes.pop("began", None)
        now, book, sent = self.world.neutral, self._book(key), caller.notes["sent truly"]
        suspect = book.rejected_at is not None and now.since(book.rejected_at) < 65
        minted = Minted(known.access_token, key, known.life, known.sent.wall, sent, suspect)
        again = known.access_token in self.minted
        if again and caller.party.process.referee.shared:
            self.doubtful.add(known.access_token)
        self.minted[known.access_token] = minted
        if any(other.rejected and other.sends == 1 for other in self.active()):
            book.doubt(now)
        fleets = Known(known.access_token, caller.notes["sent neutrally"], known.life)
        self._known[known.access_token] = fleets
        book.landed(fleets, now, voluntary=voluntary, sure=sure and self._calm)
        book.minter, book.published = caller.party.process, self._calm and not again

    def failed(
        self, caller: Caller, key: Key, since: Moment, *, refusal: bool, sure: bool, blurs: bool, attempts: int
    ) -> None:
        """A flight has failed for good."""
        self._ended += 1
        self._worked = self._told = self.failed_true = self.world.true
        began = caller.notes.pop("began", self.world.true)
        told = caller.outcome == "failed" or caller.waits_for_cache
        book = self._book(key)
        book.fade(since)
        book.failed(since, refusal=refusal, sure=sure and told and self._calm, blurs=blurs)
        trying = any("failing" in other.notes or isinstance(other.effect, TokenRequest) for other in self.active())
        if told and not trying and (attempts >= _ATTEMPTS or refusal) and self.world.true - began > 1:
            for other in self.active():
                if other.waits_for_process and other.party.process is not caller.party.process:
                    other.notes["owed"] = self._ended

    def failed_perhaps(self, key: Key, *, refusal: bool) -> None:
        """A flight has failed that came too late for its own process, but not for the others, perhaps."""
        self._told = self.failed_true = self.world.true
        self._book(key).failed(self.world.neutral, refusal=refusal, sure=False, blurs=True)

    # All else that happens.

    def api_answer(self, caller: Caller, key: Key, access_token: str, status: int, *, held: bool) -> None:
        """The API has answered."""
        book, known = self._book(key), self._known[access_token]
        if status == 401:
            was_on = book.brake
            book.rejected(known, self.world.neutral, replay=caller.sends == 2)
            if book.brake is not was_on:
                book.brake_on = self.world.true
            known.dropped |= not held and caller.sends == 1
        elif caller.minted is caller.served:
            if book.brake is not None:
                self._unbraked = self.world.true  # which others have yet to hear of
            book.accepted(known)

    def vault_failed(self) -> None:
        """The callable secret has raised, or come too late."""
        self._told = self.world.true
        for book in self.books.values():
            book.vault_failed(self.world.neutral)

    def forgotten(self) -> None:
        """Somebody calls `invalidate`, or has done so."""
        for book in self.books.values():
            if book.known is not None:
                book.known.forgotten = True

    def vanished(self, process: Process, callers: Iterable[Caller]) -> None:
        """Whoever was under way in a process is gone, and with them what they had told nobody."""
        self._vanished = self.world.true
        self._forgive()
        for caller in callers:
            self.cancelled(caller)
            if isinstance(caller.effect, TokenRequest):
                self.endpoint.answered.append(self.world.mono)
                if self.endpoint.arrivals:
                    self.endpoint.arrivals.pop()
        for book in self.books.values():
            book.blurred = True  # how many failures were told nobody knows
            for pause in (book.refusal, book.pause, book.spacing, book.brake):
                if pause is not None and self.world.neutral.since(pause.since) < _TOLD:
                    pause.sure = False
            if book.minter is process and self.world.true < self._told + _TOLD:
                book.published = False

    def cancelled(self, caller: Caller) -> None:
        """A caller is gone, which may have been leading, or about to tell of a rejection."""
        self._vanished = self.world.true
        self._forgive()
        if caller.rejected:
            self._book(self.key_of(caller.served)).doubt(self.world.neutral, caller.asked.mono)

    def _forgive(self) -> None:
        """Whoever is gone may not have told of a Retry-After any more."""
        if self.world.true < self._blocked + _TOLD:
            self._forgiven = self.endpoint.blocked_until

    def changed(self, key: str, old: bytes | None, new: bytes | None) -> None:
        """What lies in the cache was changed by a process."""
        if self.seal is None or new is None:
            return
        records = [self._opened(key, value) for value in (old, new)]
        before, after = (record.token for record in records)
        if self.note is not None:
            self.note(f"the cache of {key[:8]}", " -> ".join(self._shown(record) for record in records))
        if before is None or after is None or before.access_token == after.access_token:
            return
        if not self._known[before.access_token].rejected and not self._known[before.access_token].forgotten:
            ends = [minted.true + minted.life for minted in (self.minted[t.access_token] for t in (before, after))]
            self.check("a token in the cache gives way to younger ones only", ends[1] > ends[0] - 1, (before, after))

    def _opened(self, key: str, value: bytes | None) -> Record:
        """Return what was put there; of what does not tell of a token, an empty one."""
        assert self.seal is not None
        content = self.seal.open(key, value) if value is not None else None
        known = json.loads(content)[1] if content is not None else {}
        return Record() if "sent" in known else Record.decode(known, Instant(*self.world.now), 0.0)

    def _shown(self, record: Record) -> str:
        """Return what a record says, with small numbers for ids that are drawn anew at each run."""
        flights = [self._flights.setdefault(one, len(self._flights)) for one in (record.leader, record.failed)]
        token = record.token.access_token if record.token else "no token"
        return f"{token}, led by {flights[0]} for {record.lease:.1f} s, pause {record.pause:.1f} s, brake {record.brake:.1f} s, failed {flights[1]} {type(record.failure).__name__}"

    def idle(self) -> None:
        """Nobody can run, and time is about to jump."""
        for process in self.processes:
            if process.referee.active:
                process.referee.idle()
        if not self.shared:
            return
        true = self.world.true
        waiting = [caller for caller in self.active() if caller.waits_for_process]
        if self._works:  # until now
            self._worked = true
        self._works = (
            not waiting
            or any(isinstance(one.effect, TokenRequest | Call | Sleep) and one not in waiting for one in self.active())
            or self.limits(self.world.now)
        )
        if self._works or not self._calm or true < self._vanished + _GIVEN_UP:
            return
        for caller in waiting:
            waited = true - max(caller.asked_true, self._worked)
            self.check("no process waits for nobody", waited < _POLLED, f"{caller.name}, for {waited:.3f} s")

    def over(self) -> None:
        """The world has come to rest."""
        for process in self.processes:
            process.referee.over()
