"""What must hold: judged from what flows yield and what they are answered, never from the core's own state.

A `Book` is what a process (or the whole fleet) can know of one key's tokens. Each process has one per key and the fleet
has one per key. The rules of a process always hold. The rules of the fleet hold while nothing is wrong with the cache.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from baas_auth_plugins._http.flow import SendRequest
from baas_auth_plugins._lifecycle.effects import RunInThread, SendTokenRequest, Sleep, Wait
from baas_auth_plugins._oauth.messages import TokenRequest
from baas_auth_plugins.exceptions import TokenEndpointUnavailableError

from .callers import HOME, Caller
from .gateway import Gateway, Issued, Key, Reply, key_of
from .world import Host, Moment, World

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Fleet", "InvariantError", "Sent"]

FRESH, STALE, CRITICAL, EXPIRED = range(4)
_NEVER = float("-inf")
_REFUSED, _FAILED, _REJECTED = (5, 10, 20, 40, 60), (5, 10, 20, 30), (5, 10, 20, 40, 60)
_PATIENCE = 4.0  # seconds beside `max_wait` and `timeout`: two operations on the cache, each tried twice
_TOLD = 3.0  # seconds after which the fleet knows what one process knows
_TICK = 0.01
_DAMAGED = 200.0  # seconds for which a fault of the cache may be felt


class InvariantError(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, detail: object) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


@dataclass(eq=False)
class Known:
    """A token that somebody got: when its request was sent, on the requester's clocks and truly."""

    issued: Issued
    sent: Moment
    sent_true: float
    host: Host
    process: Process = field(repr=False)
    life: float
    got_true: float = 0.0
    is_public: bool = True  # whether the cache worked, so that the fleet knows it

    def phase(self, now: Moment, leeway: float) -> int:
        """Return the phase of its life, by the two clocks of its host."""
        left, stale = self.life - now.since(self.sent), min(leeway, self.life / 2)
        critical = min(60.0, self.life / 10, stale / 2)
        expired = min(5.0, self.life / 60, critical / 2)
        return FRESH if left > stale else STALE if left > critical else CRITICAL if left > expired else EXPIRED

    def on(self, host: Host, world: World) -> Known:
        """Return the token as another host knows it: no clock makes it younger than it is."""
        if host is self.host:
            return self
        now, age = world.on(host), world.true - self.sent_true
        sent = Moment(now.wall - max(age, now.wall - self.sent.wall), now.monotonic - age)
        return replace(self, sent=sent, host=host)


@dataclass(eq=False)
class Sent:
    """A token request. One that a thread sends outlives a caller that is cancelled."""

    key: Key
    process: Process
    now: Moment
    true: float
    timeout: float
    in_thread: bool
    reply: Reply | None = None
    is_abandoned: bool = False  # whether a caller waited in vain
    over_true: float = _NEVER  # when a caller last ceased to wait


@dataclass(eq=False)
class Pause:
    """Something must not happen for some seconds."""

    at: float = _NEVER
    seconds: float = 0.0
    count: int = 0

    def left(self, true: float) -> float:
        """Return the seconds that it has left."""
        return self.at + self.seconds - true

    def again(self, true: float, schedule: tuple[int, ...], stepped_at: float) -> Pause:
        """Return the next one of a schedule, which starts anew a minute after the last one ended, or at a step of the clock."""
        count = self.count + 1 if true <= self.at + self.seconds + 59 and stepped_at < self.at else 1
        return Pause(true, schedule[min(count, len(schedule)) - 1], count)


@dataclass(eq=False)
class Book:
    """What is known of one key's tokens."""

    known: Known | None = None
    refused: Pause = field(default_factory=Pause)
    failed: Pause = field(default_factory=Pause)  # an urgent request failed after its retries
    renewal: Pause = field(default_factory=Pause)
    spacing: Pause = field(default_factory=Pause)
    rejected: Pause = field(default_factory=Pause)  # 401s despite new tokens
    rejections: list[float] = field(default_factory=list)
    unsure_at: float = _NEVER  # a 401 that may have started a back-off
    dropped: str = ""  # the token that a 401 dropped for good
    accepted_at: float = _NEVER
    invalidated_at: float = _NEVER


class Referee:
    """What one process can know."""

    def __init__(self, fleet: Fleet, process: Process | None) -> None:
        self.fleet = fleet
        self.process = process
        self.books: dict[Key, Book] = {}
        self.arrivals: dict[str, deque[float]] = {}
        self.answered: dict[str, deque[Sent]] = {}
        self.blocked: dict[str, Pause] = {}
        self.lost: set[str] = set()  # tokens that were rejected or invalidated here, until they are issued here again
        self.rejected_at: dict[str, float] = {}  # when a hook first closed a flow at a 401 to a token

    def book(self, key: Key) -> Book:
        """Return a key's book."""
        return self.books.setdefault(key, Book())

    @property
    def is_strict(self) -> bool:
        """Whether its rules hold now."""
        return self.process is not None or self.fleet.is_calm(1.0)

    def vanished(self) -> None:
        """Its callers are gone; a new process knows nothing."""
        self.fleet.trouble(30)
        self.books = {}
        self.answered = {}

    def limited(self, client_id: str) -> bool:
        """Whether the rate limit or a Retry-After may delay a token request."""
        true, limit = self.fleet.world.true, self.fleet.scenario.limit
        blocked = self.blocked.get(client_id, Pause()).left(true) > -_TICK
        if limit is None:
            return blocked
        recent = [one for one in self.answered.get(client_id, ()) if one.over_true > true - limit[1] - _TOLD]
        busy = [one for one in self.fleet.active if one.notes.get("in flight")]
        return blocked or len(recent) + len(busy) >= limit[0]


class Fleet(Referee):
    """What all processes together can know, and the judge of all events."""

    def __init__(self, world: World, gateway: Gateway, scenario: Any, checks: Counter[str]) -> None:
        super().__init__(self, None)
        self.world = world
        self.gateway = gateway
        self.scenario = scenario
        self.checks = checks
        self.store: Any = None
        self.vault: Any = None
        self.active: dict[Caller, None] = {}
        self.sent: list[Sent] = []  # token requests that are not answered
        self.tokens: dict[str, Known] = {}
        self.rejected: set[str] = set()  # tokens that the API answered 401 to
        self.dropped: set[str] = set()
        self.errors: dict[int, Any] = {}
        self.referees: list[Referee] = [self]
        self._troubled_until = _NEVER
        self._interrupted_at = self._hung_until = _NEVER

    def check(self, invariant: str, holds: object, detail: object = "") -> None:
        """Count a check; raise if it fails."""
        self.checks[invariant] += 1
        if not holds:
            raise InvariantError(invariant, detail)

    def referee(self, process: Process) -> Referee:
        """Return the referee of a new process."""
        referee = Referee(self, process)
        self.referees.append(referee)
        return referee

    # Excuses.

    def trouble(self, seconds: float = 400.0) -> None:
        """Something went wrong that no process can be blamed for."""
        self._troubled_until = max(self._troubled_until, self.world.true + seconds)

    def interrupted(self, _caller: Caller) -> None:
        """A signal handler raised as a thread started: what that was to publish is lost."""
        self._interrupted_at = self.world.true
        self.trouble(60)

    def hangs(self, caller: Caller) -> None:
        """A caller's event loop hangs."""
        caller.notes["hung"] = True
        self._hung_until = caller.notes["hangs until"] + 60
        self.trouble(caller.notes["hangs until"] - self.world.true + 100)

    def is_calm(self, seconds: float = 0.0, faults: int = 0) -> bool:
        """Return whether processes can rely on one another: at most so many faults of the cache of late."""
        if self.store is None:
            return False
        since = self.world.true - _DAMAGED - seconds
        failures = sum(at > since for at in self.store.failures)
        lied = self.store.is_lying or self.store.last_lie > self.world.true - self.scenario.climate.life - _DAMAGED
        return self.world.true > self._troubled_until and failures <= faults and not lied

    def _is_healthy(self, caller: Caller) -> bool:
        """Return whether nothing that this caller can feel went wrong with gateway, vault or network."""
        since = min(caller.notes["asked"] - 70, self.world.true - 70)
        last = max(self.gateway.failed_at, self.vault.failed_at if self.vault else _NEVER, self._interrupted_at)
        last = max(last, self.vault.rotated_at if self.vault else _NEVER)
        return last < since and not self._stepped(caller, since)

    def schedule(self, seconds: tuple[int, ...]) -> tuple[int, ...]:
        """Return a schedule of pauses; of a fleet only the first is sure, because each process may start it anew."""
        return seconds if self.store is None else seconds[:1]

    def _has_lied(self, since: float) -> bool:
        """Return whether the cache told wrong TTLs since then: a token's age is not known, nor who leads."""
        return self.store is not None and (self.store.is_lying or self.store.last_lie > since)

    def _is_public(self, known: Known) -> bool:
        """Return whether the cache got a token, and has not lost it since."""
        return known.is_public and (self.store is None or self.store.lost_at < known.got_true)

    def _stepped(self, caller: Caller, since: float) -> bool:
        return bool(caller.party.process.host.stepped_at >= since)

    def _books(self, caller: Caller, key: Key) -> list[tuple[Referee, Book]]:
        """Return this process's book and the fleet's."""
        return [(one, one.book(key)) for one in (caller.party.process.referee, self)]

    def _usable(self, caller: Caller) -> Known | None:
        """Return the token that this caller should be served."""
        book = caller.party.process.referee.book(caller.party.key)
        known = book.known
        if known is None or known.issued.text in self.rejected | self.dropped | caller.party.process.referee.lost:
            return None
        return known if known.phase(self.world.now, caller.party.client.leeway) < EXPIRED else None

    # Steps.

    def before_step(self, caller: Caller, pending: Any, how: str, value: Any) -> None:
        """A caller is about to go on."""
        notes = caller.notes
        if caller.epoch == 0:
            self._asks(caller)
        if isinstance(pending, SendRequest) and how == "send":
            self._api_answer(caller, pending, value.status_code, value.request)
        elif isinstance(pending, SendRequest) and how == "hook":
            self._api_answer(caller, pending, 401, pending.request)
        notes["how"] = how
        sent = notes.get("in flight")
        reply = sent.reply if sent is not None else None
        if sent is not None and (how == "lost" or getattr(value, "is_timeout", False)):
            sent.is_abandoned = True
            reply = None if reply is not None and reply.response is not None else reply  # too late: it is not heard
        notes["reply"] = reply

    def _asks(self, caller: Caller) -> None:
        """A caller needs a token: at first, or after a 401."""
        notes = caller.notes
        notes["asked"] = notes["asked awake"] = self.world.true
        notes["slept"] = caller.party.process.host.slept
        notes["requests"] = notes["attempts"] = notes["failures"] = 0
        notes["minted"], notes["first"] = notes.get("minted"), True
        notes["found"] = found = self._usable(caller)
        notes["phase"] = found.phase(self.world.now, caller.party.client.leeway) if found else None

    def after_step(self, caller: Caller, pending: Any) -> None:
        """A caller has gone on: to the next effect, or to its end."""
        notes, effect = caller.notes, caller.effect
        sent = notes.pop("in flight", None)
        if sent is not None:
            self._token_answer(caller, sent, notes.pop("reply", None))
        if isinstance(effect, SendRequest):
            self._api_request(caller, effect)
        waits = isinstance(effect, Wait | Sleep | RunInThread | SendTokenRequest)
        if notes.get("first") and caller.kind not in ("invalidate", "background") and notes["how"] == "send":
            self._first_step(caller, waits=waits)
        notes["first"] = False
        if caller.kind == "invalidate" and (caller.outcome or not pending):
            for _, book in self._books(caller, caller.party.key):
                book.invalidated_at = self.world.true
                if book.known is not None:
                    self.dropped.add(book.known.issued.text)
                    caller.party.process.referee.lost.add(book.known.issued.text)
        if isinstance(pending, Wait | Sleep | RunInThread | SendTokenRequest) or caller.outcome:
            self._waited(caller)

    def _first_step(self, caller: Caller, *, waits: bool) -> None:
        phase, notes = caller.notes["phase"], caller.notes
        if phase is None or (caller.request is not None and caller.request.origin != HOME) or caller.party.vault:
            return
        if self.store is not None and self.scenario.climate.reissues:
            return  # a token that was dropped comes back
        if self._has_lied(caller.notes["found"].sent_true):
            return  # the record may say that the token is older, or have another one
        if phase == FRESH and "status" not in notes:
            self.check("a fresh token is served at once", not waits, (caller.name, caller.effect, notes["found"]))
        if phase == STALE and "status" not in notes:
            self.check(
                "a stale token is served at once, unless its caller leads", not isinstance(caller.effect, Wait | Sleep)
            )
        if phase in (STALE, CRITICAL) and "status" not in notes and caller.party.is_background:
            self.check(
                "background renewal delays no caller while a token is valid",
                not waits,
                (caller.name, caller.effect, notes["found"]),
            )
        if phase in (STALE, CRITICAL) and not waits and "status" not in notes:
            self._renewal_not_due(caller)

    def _renewal_not_due(self, caller: Caller) -> None:
        """A token that is due was served at once: is there a reason not to renew it?"""
        true, process = self.world.true, caller.party.process
        book, client_id = process.referee.book(caller.party.key), caller.party.key[0]
        others = any(one is not caller and (one.party.process is process or self.store) for one in self.active)
        pauses = [pause.left(true) > -_TICK for pause in (book.renewal, book.spacing, book.failed, book.refused)]
        excused = others or any(pauses) or process.referee.limited(client_id) or not self._is_healthy(caller)
        if self.store is not None:
            fleets = self.book(caller.party.key)
            pauses = [pause.left(true) > -_TOLD for pause in (fleets.renewal, fleets.spacing)]
            excused = excused or not self.is_calm() or any(pauses) or self.limited(client_id)
            excused = excused or fleets.known is None or fleets.known.issued.text != caller.notes["found"].issued.text
        if caller.request is None and caller.value is None:
            return
        served = (caller.request.authorization or "") if caller.request else f"Bearer {caller.value.token.access_token}"
        if served == f"Bearer {caller.notes['found'].issued.text}":
            self.check("a renewal that is due is not put off", excused, caller.notes["found"])

    def _waited(self, caller: Caller) -> None:
        client, notes, host = caller.party.client, caller.notes, caller.party.process.host
        seconds = self.world.true - notes["asked"] - (host.slept - notes["slept"])
        most = client.max_wait + client.timeout + _PATIENCE
        if not notes.get("hung") and not notes.get("dripped"):
            self.check("no caller waits longer than max_wait and one timeout", seconds <= most, f"{seconds:.2f} s")

    # Token requests.

    def token_request(self, caller: Caller, request: TokenRequest, *, in_thread: bool) -> Sent:
        """A token request leaves."""
        notes, key, true = caller.notes, key_of(request), self.world.true
        party, process = caller.party, caller.party.process
        notes["requests"] += 1
        self.check("one call sends at most 6 token requests", notes["requests"] <= 6)
        self.check("a token request has a timeout", 0 < request.timeout <= party.client.timeout)
        for other in self.active:
            theirs = other.notes.get("in flight")
            if other is caller or theirs is None or theirs.key != key:
                continue
            late = other.notes.get("hung") or true < self._hung_until or true - theirs.true > party.client.timeout + 4.9
            if other.party.process is process:
                self.check("one token request is in flight per key and process", late, other.name)
            elif self.is_calm(1.0):
                self.check("one token request is in flight per key and fleet", late, other.name)
        left = [one for one in self.sent if one.process is process and one.key == key and one.in_thread]
        left = [one for one in left if not one.is_abandoned and true < one.true + one.timeout - _TICK]
        is_sure = true > self._hung_until and self._interrupted_at < true - party.client.timeout
        self.check("no token request is sent beside one that a caller left", not left or not is_sure, left)
        for referee, book in self._books(caller, key):
            if referee.is_strict:
                own = process.referee.book(key).known
                if referee.process or own is None or self._is_public(own):  # else its generation is another
                    self._justify(caller, referee, book, slack=_TICK if referee.process else _TOLD)
        sent = Sent(key, process, self.world.now, true, request.timeout, in_thread)
        self.sent.append(sent)
        self.awaits(caller, sent)
        return sent

    def awaits(self, caller: Caller, sent: Sent) -> None:
        """A caller waits for the answer to a token request: its own, or one that a cancelled caller left behind."""
        notes = caller.notes
        if notes.get("in flight") is not sent:
            notes["in flight"], notes["was valid"] = sent, self._usable(caller)
            notes["attempts"] += 1

    def _justify(self, caller: Caller, referee: Referee, book: Book, slack: float) -> None:
        """Check that the contract allows this token request."""
        skews = self.scenario.skews  # what others know may end as much too early
        ends = slack if referee.process else slack + max(skews) - min(skews)
        true, host, where = self.world.true, caller.party.process.host, "" if referee.process else " in the fleet"

        def runs(pause: Pause) -> bool:
            is_sure = host.stepped_at < pause.at and (slack == _TICK or pause.at > self._troubled_until)
            is_known = true - pause.at > slack or slack == _TICK
            # While the cache tells wrong TTLs two may lead, and what the one got replaces what the other was refused.
            is_sure = is_sure and not self._has_lied(pause.at)
            return is_sure and is_known and pause.left(true) > ends and not caller.notes.get("hung")

        blocked = referee.blocked.get(caller.party.key[0], Pause())
        self.check(f"no token request while a Retry-After runs{where}", not runs(blocked), blocked)
        self.check(f"a refusal is cached{where}", not runs(book.refused), book.refused)
        retries = caller.notes["attempts"] > 0
        known, leeway = book.known, caller.party.client.leeway
        lost = caller.party.process.referee.lost
        if known is None or known.issued.text in self.dropped or caller.notes.get("hung"):
            self.check(f"an outage is cached{where}", retries or not runs(book.failed), book.failed)
            return
        known = known.on(host, self.world)
        phase = known.phase(self.world.now, leeway)
        is_told = true > max(known.got_true + slack, self._hung_until) and known.sent_true > host.stepped_at
        is_told = is_told and not self._has_lied(known.sent_true)
        if referee.process is None:
            is_told = is_told and known.sent_true > self._troubled_until and self._is_public(known)
        if phase == EXPIRED or not is_told:
            self.check(f"an outage is cached{where}", retries or not runs(book.failed), book.failed)
        elif known.issued.text in self.rejected | lost or known.issued.text == caller.notes.get("served"):
            # Its 401 came before, or the issuer hands out the same token again.
            late = slack if self.store is None else _TOLD
            is_late = caller.notes["asked"] <= book.rejected.at + late or self.scenario.climate.reissues
            is_late = is_late or known.issued.text == book.dropped  # so there is no token that could be served
            self.check(f"the back-off of rejections is kept{where}", is_late or not runs(book.rejected), book.rejected)
        elif not caller.party.vault:
            now = self.world.now
            if referee.process is None:  # one that outlives the caller's by less than a second is not adopted
                now = Moment(now.wall + 1.0, now.monotonic + 1.0)
            is_fresh = known.phase(now, leeway) == FRESH
            self.check(f"a fresh token is not requested again{where}", not is_fresh, known)
            self.check(f"a failed renewal is paused{where}", not runs(book.renewal), book.renewal)
            self.check(f"voluntary renewals keep their distance{where}", not runs(book.spacing), book.spacing)

    def arrived(self, sent: Sent) -> None:
        """A token request reached the gateway."""
        is_awaited = any(one.notes.get("in flight") is sent for one in self.active)
        if not is_awaited or self.scenario.limit is None:
            return
        most, seconds = self.scenario.limit
        key = sent.key
        for referee in (sent.process.referee, self):
            arrivals = referee.arrivals.setdefault(key[0], deque())
            arrivals.append(self.world.true)
            while arrivals[0] <= self.world.true - seconds:
                arrivals.popleft()
            if referee is not self or self.is_calm(60):
                where = "" if referee.process else " in the fleet"
                self.check(f"the token rate limit is kept{where}", len(arrivals) <= most, len(arrivals))

    def _token_answer(self, caller: Caller, sent: Sent, reply: Reply | None) -> None:
        """A token request is over for a caller: `reply` is what the flow heard, None if it heard nothing."""
        notes, true, key = caller.notes, self.world.true, sent.key
        sent.over_true = true
        for referee in (caller.party.process.referee, self):
            answered = referee.answered.setdefault(key[0], deque(maxlen=200))
            if sent not in answered:
                answered.append(sent)
        notes["dripped"] = notes.get("dripped") or true - sent.true > caller.party.client.timeout + 0.5
        if notes["dripped"]:  # its lead was given to another caller meanwhile
            self._hung_until = true + 60
        if notes["how"] not in ("send", "lost"):
            return
        if reply is None or reply.issued is None:
            self._failed(caller, key, reply)
            return
        issued = reply.issued
        known = Known(issued, sent.now, sent.true, sent.process.host, sent.process, issued.life, true)
        known.is_public = self.is_calm()
        self.rejected.discard(issued.text)
        sent.process.referee.lost.discard(issued.text)
        for referee in self.referees:
            referee.rejected_at.pop(issued.text, None)
        self.dropped.discard(issued.text)
        leeway = caller.party.client.leeway
        if known.phase(self.world.now, leeway) == EXPIRED:
            self._failed(caller, key, Reply("refusal", None))
            return
        notes["minted"], caller.party.is_resolved = issued.text, True
        caller.party.key = key
        for _, book in self._books(caller, key):
            if book.known is not None and book.known.sent_true > known.sent_true:
                continue  # a late answer
            if notes["dripped"] and book.known is not None and book.known.got_true > sent.true:
                continue  # its lead was given to another caller, whose token may be kept
            before, book.known = book.known, known
            book.refused, book.failed, book.renewal = Pause(), Pause(), Pause()
            voluntary = _same(before, notes["was valid"])
            book.spacing = Pause(true, min(30.0, known.life / 10) if voluntary else 0.0)
        self.tokens[issued.text] = known

    def _failed(self, caller: Caller, key: Key, reply: Reply | None) -> None:
        notes, true, stepped_at = caller.notes, self.world.true, caller.party.process.host.stepped_at
        self.gateway.failed_at = true
        notes["failures"] += reply is None or reply.kind != "limited"
        for referee, book in self._books(caller, key):
            if reply is not None and reply.retry_after and reply.response is not None:
                blocked = referee.blocked.get(key[0], Pause())
                if reply.retry_after > blocked.left(true):
                    referee.blocked[key[0]] = Pause(true, reply.retry_after)
            if caller.party.vault or notes.get("hung"):
                continue
            if reply is not None and reply.kind == "refusal":
                book.refused = book.refused.again(true, self.schedule(_REFUSED), stepped_at)
            elif _same(book.known, notes["was valid"]):
                book.renewal = book.renewal.again(true, self.schedule(_FAILED), stepped_at)
            elif isinstance(caller.error, TokenEndpointUnavailableError) and notes["failures"] == 4:
                book.failed = Pause(true, _FAILED[0])

    # API requests.

    def _api_request(self, caller: Caller, effect: SendRequest) -> None:
        request: Any = effect.request
        notes = caller.notes
        notes["sends"] = notes.get("sends", 0) + 1
        self.check("an API request is sent at most twice", notes["sends"] <= 2)
        if request.origin != HOME:
            self.check("no token goes to another origin", request.authorization is None, request)
            return
        text = (request.authorization or "").removeprefix("Bearer ")
        issued = self.gateway.tokens.get(text)
        self.check("no API request without a token", issued is not None, request)
        assert issued is not None
        mine = issued.key[0] == caller.party.key[0] and (caller.party.vault or issued.key == caller.party.key)
        self.check("no API request with another key's token", mine, issued)
        known = self.tokens.get(text)
        if notes["sends"] == 2 and "redirected" not in notes:
            self.check("a replay has another token", self.scenario.climate.reissues or text != notes["served"], text)
        rejected_at = caller.party.process.referee.rejected_at.get(text, math.inf)
        if notes["sends"] == 1 and rejected_at < notes["asked"] - _TICK and not self.scenario.climate.reissues:
            excused = self._is_401_returned(caller, issued.key)
            self.check("after a hook raised at a 401, later calls get a new token", excused, text)
        notes["served"], host, caller.party.is_resolved = text, caller.party.process.host, True
        if known is None:
            return  # its answer was lost for the caller that requested it, but not for the cache
        lied = self._has_lied(known.sent_true)
        if host.stepped_at < known.sent_true and not lied:
            is_valid = self.world.true < issued.at + issued.life
            self.check("no API request with an expired token", is_valid, f"{caller.name}: {issued}")
        own = caller.party.process.referee.book(issued.key).known
        versions = [known] if own is None or own.issued.text != text else [own]
        if self.store is not None and self.scenario.climate.reissues:  # the record may have either version of the token
            versions.append(known)
        if versions[0].process is caller.party.process or not lied:
            phase = min(one.on(host, self.world).phase(self.world.now, caller.party.client.leeway) for one in versions)
            self.check("no API request with a token in its last seconds", phase < EXPIRED, versions)
        known = versions[0]
        for referee, book in self._books(caller, known.issued.key):  # a follower adopts
            # Of two tokens of one generation the record's is kept, which may be the older one.
            is_other = (
                book.known is None or book.known.sent_true < known.sent_true or (lied and not _same(book.known, known))
            )
            if referee.process and is_other and notes.get("minted") != text:
                book.known = known.on(host, self.world)

    def _api_answer(self, caller: Caller, effect: SendRequest, status: int, last: Any) -> None:
        notes, true, stepped_at = caller.notes, self.world.true, caller.party.process.host.stepped_at
        notes["status"] = status
        served = notes.get("served")
        if served is None or effect.request.origin != HOME:  # type: ignore[attr-defined]
            return
        known, is_replay = self.tokens.get(served), notes["sends"] == 2
        is_ours = status == 401 and last.authorization == f"Bearer {served}" and last.origin == HOME
        notes["healable"] = is_ours and not is_replay and last.is_replayable and notes.get("how") != "hook"
        if known is None:
            return
        minted = notes.get("minted") == served and "redirected" not in notes  # else the replay gives no verdict
        if is_ours:
            self.rejected.add(served)
            caller.party.process.referee.lost.add(served)
            keeps = self._is_backing_off(caller, known.issued.key)  # a token that is not dropped now may be kept
            if caller.has_hook and caller.kind == "httpx" and not is_replay and not keeps:
                caller.party.process.referee.rejected_at.setdefault(served, true)
        for _, book in self._books(caller, known.issued.key):
            if is_ours and ((is_replay and minted) or not last.is_replayable or caller.has_hook):
                book.rejections.append(true)
                others = any(
                    one.notes.get("in flight") and one.notes["in flight"].key == known.issued.key for one in self.active
                )
                runs, may_run = book.rejected.left(true) > 0, true <= book.unsure_at + 60
                is_new = not others and not runs and not may_run and true > book.accepted_at + 60
                if not is_replay and not runs:
                    book.dropped = served
                if not (is_replay and minted and _same(book.known, known) and is_new):
                    book.unsure_at = book.unsure_at if runs else true
                else:
                    book.rejected = book.rejected.again(true, self.schedule(_REJECTED), stepped_at)
            elif is_replay and minted and status != 401 and not caller.has_hook:
                book.accepted_at = true
                book.rejected = Pause()
        if is_ours and not is_replay:
            self._asks(caller)
            notes["minted"] = None

    # Ends.

    def ended(self, caller: Caller) -> None:
        """A call is over."""
        notes = caller.notes
        if caller.error is not None:
            self.check("each caller gets an error object of its own", id(caller.error) not in self.errors)
            self.errors[id(caller.error)] = caller.error
        if caller.kind == "invalidate":
            return
        if caller.outcome == "failed":
            self._failed_call(caller)
        if caller.outcome == "returned" and notes.get("status") == 401 and notes.get("healable"):
            self._returned_401(caller)

    def _failed_call(self, caller: Caller) -> None:
        known, true = self._usable(caller), self.world.true
        vault, rotated = caller.party.vault is not None, self.vault.rotated_at if self.vault else _NEVER
        excused = vault and (rotated > true - 400 or not caller.party.is_resolved)
        if known is not None and self.scenario.climate.reissues:
            excused = excused or known.issued.text == caller.notes.get("served")  # another process got it again
        if known is not None and not excused:
            self.check(
                "no call fails while a token is valid", known.got_true > true - _TICK, f"{caller.error}; {known}"
            )
        fleets = self.book(caller.party.key).known
        skews = self.scenario.skews  # a pause may have ended earlier for another process
        excused = excused or max(skews) - min(skews) > _TOLD
        if self.is_calm() and fleets is not None and not excused and self._is_public(fleets):
            is_valid = (
                fleets.on(caller.party.process.host, self.world).phase(self.world.now, caller.party.client.leeway)
                < EXPIRED
            )
            is_told = fleets.issued.text not in self.rejected | self.dropped
            is_told = is_told and fleets.got_true < true - _TOLD and fleets.host.stepped_at < fleets.sent_true
            self.check("no call fails while the fleet has a valid token", not (is_valid and is_told), caller.error)
        client = caller.party.key[0]
        limited = caller.party.process.referee.limited(client) or self.limited(client)
        if caller.notes.get("hung") or self._troubled_until > caller.notes["asked"]:
            return
        faults = self.store is not None and not self.is_calm(caller.party.client.max_wait, faults=1)
        self.check("no call fails without a cause", limited or faults or not self._is_healthy(caller), caller.error)

    def _returned_401(self, caller: Caller) -> None:
        """A 401 was returned that another token might have healed."""
        excused = self._is_401_returned(caller, self.gateway.tokens[caller.notes["served"]].key)
        self.check("a 401 is returned only for a rejected replay or a rate limit", excused, caller.name)

    def _is_401_returned(self, caller: Caller, key: Key) -> bool:
        """Return whether there is a reason not to request a token because of a 401."""
        is_calm = self.store is None or self.is_calm(faults=1)
        hung = caller.notes.get("hung") or self._troubled_until > self.world.true
        return bool(self._is_backing_off(caller, key) or hung or not is_calm or not self._is_healthy(caller))

    def _is_backing_off(self, caller: Caller, key: Key) -> bool:
        """Return whether a back-off of rejections or a rate limit may run."""
        notes, true, process = caller.notes, self.world.true, caller.party.process
        own, fleets = process.referee.book(key), self.book(key)
        since = own.accepted_at
        if self.is_calm(faults=1) and fleets.accepted_at < notes["asked"] - _TOLD:
            since = max(since, fleets.accepted_at)
        rejected = any(max(since, true - 65) < at for at in fleets.rejections)
        return rejected or process.referee.limited(key[0]) or self.limited(key[0])


def _same(one: Known | None, other: Known | None) -> bool:
    return one is not None and other is not None and one.issued.text == other.issued.text
