"""What must hold at each event in a process. The referee sees what callers see, and the gateway's true time.

Nobody asks the production code whether it did right: every verdict follows from the ledger, which is
written from the effects that flows yielded and the answers they were given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from baas_auth_plugins._flow import Call, Join, Release, Sleep, TokenRequest
from baas_auth_plugins._httpx import Send
from baas_auth_plugins.exceptions import ConfigurationError, RateLimitError, TokenEndpointError

from .callers import HOME, Caller, Party, Request
from .fleet import FleetReferee, InvariantError
from .gateway import Key, Reply, key_of
from .ledger import CRITICAL, FRESH, STALE, Book, Endpoint, Known
from .store import Operation
from .world import EPSILON, Moment, World

if TYPE_CHECKING:
    from .process import Process

__all__ = ["InvariantError", "Referee"]

_MOST_ATTEMPTS = 5  # one while a token lived, and four after its death
_MOST_LOSSES_SEEN = 3  # one of a flight that tried once, and two of one that tried in full
_SLACK = 0.5  # seconds that a runnable caller may be left lying
_HASTE = 1.1  # seconds
_LEFT_ALONE = 5  # seconds
_PATIENCE, _PATIENCE_WITHOUT_TOKEN = 0.25, 5.0  # seconds for one operation on the cache
_NEVER = float("-inf")


class Referee:
    """Checks each event in one process against the ledger."""

    def __init__(self, world: World, fleet: FleetReferee, shared: bool) -> None:
        self.world = world
        self.fleet = fleet
        self.gateway = fleet.gateway
        self.check = fleet.check
        self.shared = shared
        """Whether the cache is: then others may know, and have done, what is not seen from here."""
        self.endpoint = Endpoint(fleet.limit)
        self.books: dict[Key, Book] = {}
        self.active: dict[Caller, None] = {}
        """Callers under way, in the order in which they came."""
        self.cache_failed = self.cache_worked = _NEVER
        self.cache_failures = 0
        """When the production code last found the cache failing or working, on the monotonic clock."""
        self.no_thread_true = self.lapsed_true = self.failed_fairly = _NEVER
        self._known: dict[str, Known] = {}

    @property
    def vault(self) -> Any:
        """Where a callable secret comes from."""
        return self.fleet.vault

    # What a caller is owed when it asks.

    def usable(self, party: Party) -> Known | None:
        """Return the token that this party should be served, unless it is dead; None after a 401 or `invalidate`."""
        known = self.books[party.key].known if party.key in self.books else None
        if known is None or known.rejected or known.forgotten or known.access_token in self.fleet.doubtful:
            return None
        return known if known.lives(self.world.now, party.leeway) else None

    def asked(self, caller: Caller) -> None:
        """A caller needs a token, at first or after a 401."""
        caller.asked, caller.asked_true = self.world.now, self.world.true
        caller.called = 0.0
        caller.losses_seen, caller.attempts, caller.minted = 0, 0, None
        caller.notes.pop("owed", None)
        caller.notes.pop("began", None)
        caller.notes["found"] = known = self.usable(caller.party)
        caller.notes["age"] = known.age(self.world.now, caller.party.leeway) if known else None
        self.active[caller] = None

    def first_step(self, caller: Caller) -> None:
        """The caller has taken its first step: was it served at once, where it should have been?"""
        age, effect = caller.notes["age"], caller.effect
        if age is None or caller.kind == "invalidate" or (caller.request and caller.request.origin != HOME):
            return
        served = isinstance(effect, Send) or caller.outcome == "returned"
        if age == FRESH:
            self.check("a fresh token is served at once", served, effect)
        elif age == STALE:
            self.check(
                "a stale token is served at once, unless its caller leads",
                not (caller.waits_for_caller or isinstance(effect, Sleep)),
            )
        if age in (STALE, CRITICAL) and caller.party.background and caller.kind != "background":
            self.check("background renewal delays nobody while a token lives", served, effect)
        another = self.shared and _served(caller) not in (None, caller.notes["found"].access_token)
        if age in (STALE, CRITICAL) and served and caller.kind != "background" and not another:
            self._renewal_not_due(caller, caller.notes["found"])

    def _renewal_not_due(self, caller: Caller, known: Known) -> None:
        now, book = self.world.now, self.books[self.fleet.key_of(known)]
        # A frozen leader is an excuse for as long as its lease may last: four phases of ten seconds, and a while.
        others = any(
            other is not caller and other.waits_for_token and now.mono - other.frozen_since < 60
            for other in self.active
        )
        resting = any(pause is not None and pause.holds(now) for pause in (book.pause, book.spacing, book.refusal))
        excused = self.world.true - self.world.stepped_at < 120 or self.world.true - self.no_thread_true < EPSILON
        excused = excused or (caller.party.rotates and self.vault.version > 1)  # who waits for the new secret is unseen
        limited = self._limited(now)
        excused = excused or (self.shared and self.fleet.rests(caller))
        self.check(
            "a renewal that is due is not put off", others or resting or limited or excused, f"{caller.name}: {known}"
        )

    def _limited(self, now: Moment) -> bool:
        """Tell whether a caller may find that no token request can be sent just now."""
        in_flight = sum(isinstance(caller.effect, TokenRequest) for caller in self.active)
        return self.endpoint.limits(now, in_flight) or (self.shared and self.fleet.limits(now))

    # The cache, where it is shared.

    def cache_step(self, caller: Caller, operation: Operation | None, *, asked: bool) -> None:
        """The caller has taken a step, and may have begun an operation on the cache, or is done with one."""
        mono = self.world.mono
        if asked and not caller.waits_for_cache:
            spent, before = mono - caller.cache_asked, caller.notes.pop("operation")
            caller.called += spent
            cut_short = caller.was_frozen or caller.outcome == "cancelled"
            if not cut_short:
                most = _PATIENCE if caller.notes["had a token"] else _PATIENCE_WITHOUT_TOKEN
                self.check("the cache is not waited for longer than promised", spent <= most + _SLACK, f"{spent:.3f} s")
            if not before.failed and before.done:
                self.cache_failed, self.cache_worked, self.cache_failures = _NEVER, mono, 0
            elif not cut_short and caller.cache_asked > max(self.cache_failed, self.cache_worked):  # which is news
                self.cache_failed, self.cache_failures = mono, self.cache_failures + 1
        waits = operation is not None and isinstance(caller.effect, Join) and caller.effect.waiter is operation.waiter
        if waits:
            in_doubt = self.cache_failures == 1  # who has no token, or a rejected one, asks once more
            left_alone = in_doubt or mono >= self.cache_failed + _LEFT_ALONE - EPSILON
            self.check("a cache that failed is waited for by nobody for a while", left_alone, caller.name)
            caller.cache_waiter, caller.cache_asked = caller.effect.waiter, mono
            caller.notes["cache asked"] = self.world.now, self.world.neutral
            caller.notes["operation"], caller.notes["had a token"] = operation, self._serves_meanwhile(caller)

    def _serves_meanwhile(self, caller: Caller) -> bool:
        """Tell whether the caller has had a token since it asked, so that nothing is urgent."""
        found = self.usable(caller.party)
        return found is not None and found is caller.notes["found"] and caller.kind != "invalidate"

    # Token requests.

    def token_request(self, caller: Caller, request: TokenRequest) -> None:
        """A token request leaves."""
        now, key = self.world.now, key_of(request)
        book = self.books.setdefault(key, Book())
        self.fleet.token_request(caller, key)
        lapsed = self.lapsed_true >= caller.asked_true or (book.sender is not None and book.sender.was_frozen)
        self.check(
            "at most one token request is in flight per key",
            book.sender is None or lapsed,
            self._names(caller, book.sender),
        )
        self.check("no token request while a Retry-After runs", now.mono >= self.endpoint.blocked_until - EPSILON)
        self.check(
            "a token request has a timeout, within the caller's patience",
            0 < request.timeout <= caller.party.timeout + EPSILON,
            request.timeout,
        )
        caller.attempts += 1
        tries = caller.attempts <= _MOST_ATTEMPTS or caller.was_frozen
        self.check("a caller gives up after so many failing attempts", tries, caller.name)
        if book.refusal is not None and book.refusal.sure and not lapsed:
            self.check("a refusal is not followed by another try at once", not book.refusal.holds(now, -EPSILON))
        voluntary = False
        if self.world.stepped_at < caller.asked_true and not lapsed:
            voluntary = self._justified(caller, book, now)
        if "flight" not in caller.notes:
            flags = (book.known.rejected, book.known.forgotten) if book.known else None
            caller.notes["flight"] = (key, book.known, flags)
        caller.notes["sent"], caller.notes["voluntary"], caller.notes["lapsed"] = now, voluntary, lapsed
        caller.notes["before"] = book.known if book.known and book.known.lives(now, caller.party.leeway) else None
        book.sender = caller

    def _justified(self, caller: Caller, book: Book, now: Moment) -> bool:
        """Check that this mint is one that CONTRACT allows; say whether it is voluntary: a live token remains."""
        known = book.known
        if known is None or known.forgotten or not known.lives(now, caller.party.leeway):
            return False
        if known.access_token in self.fleet.doubtful:
            return False
        stale, _, _ = known.margins(caller.party.leeway)
        early = known.left(now) > stale + EPSILON
        if known.rejected:
            brake = None if self.shared and caller.party.rotates else book.brake
            if early and brake is not None and brake.sure and not known.dropped:
                self.check("401-driven mints obey the brake", not brake.holds(now, -EPSILON), brake)
            return False
        self.check("a mint is voluntary, or due to a rejection or a death", not early, f"{caller.name}: {known}")
        if book.pause is not None and book.pause.sure:
            self.check("a failed renewal is not repeated within its cool-down", not book.pause.holds(now, -EPSILON))
        if book.spacing is not None and book.spacing.sure:
            self.check("voluntary renewals keep their distance", not book.spacing.holds(now, -EPSILON))
        return True

    def vault_failed(self) -> None:
        """The callable secret has raised, or come too late."""
        self.fleet.failed_true = self.world.true
        for book in self.books.values():
            book.vault_failed(self.world.now)
        self.fleet.vault_failed()

    def arrival(self) -> None:
        """A token request has reached the gateway."""
        count, limit = self.endpoint.arrived(self.world.true), self.endpoint.limit
        if limit is not None:
            given_up = sum(caller.was_frozen for caller in self.active)  # the process counts these from their sending
            self.check("the token rate limit is kept", count <= limit[0] + given_up, f"{count} within {limit[1]} s")
        self.fleet.arrival()

    def token_request_over(self, caller: Caller, reply: Reply | None) -> None:
        """The flow was given the answer, or closed (None), and has taken its next step."""
        now = self.world.now
        key = caller.notes["flight"][0]
        book = self.books[key]
        if book.sender is caller:
            book.sender = None
        self.endpoint.answered.append(now.mono)
        self.fleet.token_request_over(caller, reply)
        if caller.was_frozen:
            self.lapsed_true = self.world.true
        caller.notes.pop("failing", None)
        known = self._known_from(caller, reply, now)
        if reply is None or known is not None:
            if known is not None:
                self._landed(caller, book, key, known)
            del caller.notes["flight"]
            return
        self.endpoint.told(reply, now)
        self.fleet.failed_true = self.world.true
        if caller.outcome == "lost" and not caller.was_frozen:
            for other in self.active:
                other.losses_seen += other.waits_for_caller
        caller.attempts -= reply.kind == "429"
        caller.notes["failing"] = reply.kind

    def stepped(self, caller: Caller, pending: Any, how: str) -> None:
        """A caller has taken a step: is its flight over? Not while it waits for a retry, or asks the vault again."""
        effect, kind = caller.effect, caller.notes.get("failing")
        if kind is None or isinstance(effect, Sleep) or (isinstance(effect, Call) and effect.function is self.vault):
            return
        if caller.waits_for_cache:
            return
        if isinstance(effect, TokenRequest):
            again = self.shared and kind != "refusal" and key_of(effect) == caller.notes["flight"][0]
            if again or isinstance(pending, Sleep):
                return
        del caller.notes["failing"]
        attempts, caller.attempts = caller.attempts, 0
        key, before, flags = caller.notes.pop("flight")
        book, refusal = self.books[key], kind == "refusal"
        if book.known is not before and self.usable(caller.party):
            self.fleet.failed_perhaps(key, refusal=refusal)
            return  # late: somebody has a newer token
        changed = book.known is not before or (before and flags != (before.rejected, before.forgotten))
        sure = not (changed or caller.was_frozen or caller.party.rotates or (before and before.rejected))
        if self.shared and caller.outcome == "cancelled":  # while it told of its failure, perhaps
            book.failed(self.world.now, refusal=refusal, sure=False, blurs=True)
            self.fleet.failed_perhaps(key, refusal=refusal)
        elif how == "send" or caller.outcome == "lost":  # else it was cancelled, or the vault failed it
            # Retries that end may have ended for lack of time, which counts as nobody's failure.
            spent = refusal or caller.notes["voluntary"]
            blurs = changed or not spent
            since = self.world.now, self.world.neutral
            if isinstance(pending, Join) and pending.waiter is caller.cache_waiter:
                since = caller.notes["cache asked"]  # to tell others of it, which was some time ago
            book.failed(since[0], refusal=refusal, sure=sure, blurs=blurs)
            self.fleet.failed(caller, key, since[1], refusal=refusal, sure=sure, blurs=blurs, attempts=attempts)

    def _known_from(self, caller: Caller, reply: Reply | None, now: Moment) -> Known | None:
        """Return the token that a reply holds, if it can be used."""
        if reply is None or reply.issued is None or reply.kind != "good":
            return None
        known = Known(reply.issued.access_token, caller.notes["sent"], reply.life)
        return known if known.lives(now, caller.party.leeway) else None

    def _landed(self, caller: Caller, book: Book, key: Key, known: Known) -> None:
        now, voluntary = self.world.now, caller.notes["voluntary"]
        began_alive = caller.notes["found"] is not None and caller.attempts == 1  # to die before the request left
        perhaps = caller.notes["before"] is not None or began_alive
        sure = voluntary and not caller.was_frozen
        if self.shared and any(other.rejected and other.sends == 1 for other in self.active):
            book.doubt(now)  # who looks first what others know has not told of the rejection yet
        late = self.shared and book.known is not None and known.sent.mono < book.known.sent.mono
        if not (late and caller.was_frozen):  # what came meanwhile may have been kept, rejected or not
            book.landed(known, now, voluntary=voluntary or perhaps or caller.was_frozen, sure=sure)
        if known is book.known or known.access_token not in self._known:
            self._known[known.access_token] = known
        self.fleet.landed(caller, key, known, voluntary=voluntary or perhaps or caller.was_frozen, sure=sure)
        caller.attempts, caller.minted = 0, known

    # API requests.

    def api_request(self, caller: Caller, request: Request, sent: bytes) -> None:
        """An API request leaves."""
        caller.sends += 1
        access_token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.check("at most two sends per API request", caller.sends <= 2, caller.name)
        if request.origin != HOME:
            self.check("no other origin gets the token", not access_token, caller.name)
            return
        self.check("never an API request without a token", access_token in self.fleet.minted, caller.name)
        self.check("the body goes out whole each time", request.content.whole(sent), f"{caller.name} {sent!r}")
        before, caller.served = caller.served, self.served(caller, access_token)
        if caller.sends == 2 and before.rejected and not self.gateway.climate.reissues:
            self.check("a replay carries another token", caller.served is not before, caller.name)

    def served(self, caller: Caller, access_token: str) -> Known:
        """A caller was given a token to send."""
        issued = self.gateway.tokens[access_token]
        self.check("never a token past its expiry", self.world.true < issued.expiry, f"{caller.name} {access_token}")
        key = self.fleet.minted[access_token].key
        known = self._known.get(access_token)
        if known is None or (self.shared and not known.lives(self.world.now, caller.party.leeway)):
            known = self._adopted(access_token, key)  # for the first time, or issued once more
        left = known.left(self.world.now) - known.margins(caller.party.leeway)[2]
        living = left > -EPSILON or access_token in self.fleet.doubtful
        self.check("never a dead token, by any clock of the machine", living, f"{caller.name} {known}")
        current = self.usable(caller.party)
        late = known is not current and current is not None and current is self.books[key].known
        self.check("a token that came late is not served", not late, f"{caller.name} {known}")
        caller.party.key = key
        return known

    def _adopted(self, access_token: str, key: Key) -> Known:
        """Take note that this process has taken over a token that another one minted."""
        self.check("no process has another's token, but through a shared cache", self.shared)
        known = self.fleet.minted[access_token].known_here(self.world)
        self._known[access_token] = known
        book = self.books.setdefault(key, Book())
        if book.known is None or known.sent.mono > book.known.sent.mono or not self._holds(book.known):
            book.adopted(known)
        return known

    def _holds(self, known: Known) -> bool:
        return not (known.rejected or known.forgotten)

    def vanished(self, process: Process) -> None:
        """Whoever was under way is gone: a child process has only the memory of it, and a new one not even that."""
        for caller in self.active:
            if caller.rejected and self.shared:
                self.books[self.fleet.key_of(caller.served)].doubt(self.world.now, caller.asked.mono)
            if isinstance(caller.effect, TokenRequest):
                self.endpoint.answered.append(self.world.mono)
                if self.endpoint.arrivals:  # the parent's, which alone will know when it was answered
                    self.endpoint.arrivals.pop()
        self.fleet.vanished(process, self.active)
        self.active.clear()
        for book in self.books.values():
            book.sender = None

    def forgotten(self) -> None:
        """Somebody calls `invalidate`, or has done so."""
        for book in self.books.values():
            if book.known is not None:
                book.known.forgotten = True
        self.fleet.forgotten()

    def api_answer(self, caller: Caller, request: Request, status: int) -> None:
        """The flow is about to be given the API's answer."""
        access_token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not access_token or caller.redirected:
            return
        key = self.fleet.minted[access_token].key
        book = self.books[key]
        if status == 401:
            book.rejected(caller.served, self.world.now, replay=caller.sends == 2)
            caller.rejected, caller.released = True, False
            brake = book.brake is not None and book.brake.holds(self.world.now)
            caller.notes["held"] = held = brake or self._limited(self.world.now)
            caller.served.dropped |= not held and caller.sends == 1
        elif caller.minted is caller.served:
            book.accepted(caller.served)
            if self.shared and book.brake is not None and any(other.rejected for other in self.active):
                book.brake.sure = False  # who looks first what others know has not told of the rejection yet
        self.fleet.api_answer(caller, key, access_token, status, held=caller.notes.get("held", True))

    def effect(self, caller: Caller) -> None:
        """A flow has yielded something."""
        effect = caller.effect
        if isinstance(effect, Release):
            caller.released = True
        elif caller.rejected and caller.sends == 1 and isinstance(effect, Join | Sleep | TokenRequest):
            self.check("a rejected response is read before anything is awaited", caller.released, effect)

    # The end of a call.

    def finished(self, caller: Caller) -> None:
        """A caller is through."""
        self.active.pop(caller, None)
        if caller.outcome in ("cancelled", "lost"):
            self.fleet.cancelled(caller)
            if caller.rejected and self.shared:
                self.books[self.fleet.key_of(caller.served)].doubt(self.world.now, caller.asked.mono)
        error = caller.error
        if caller.kind == "background" or (caller.kind == "invalidate" and error is None):
            return
        party, waited = caller.party, self.world.mono - caller.asked.mono - caller.called
        if caller.outcome == "failed":
            kinds = (TokenEndpointError, ConfigurationError) if party.rotates else TokenEndpointError
            self.check("errors are of the package's own kinds", isinstance(error, kinds), repr(error))
            self.check("each caller gets an error of its own", id(error) not in self.fleet.errors, error)
            self.fleet.errors[id(error)] = error  # kept, so that no id is used twice
            known = self.usable(party)
            if not party.rotates or known is caller.notes["found"]:
                self.check("no call fails while a token lives", known is None, f"{caller.name}: {error!r} {known}")
            if not caller.was_frozen:
                self._failure_justified(caller, error, waited)
        calm = self.world.stepped_at < caller.asked_true and not caller.was_frozen and not party.rotates
        known = self.usable(party)
        if caller.outcome == "lost" and calm and known is not None and known is caller.notes["before"]:
            renews = caller.notes["voluntary"] or caller.notes["lapsed"]
            self.check("only the one that renews may see the network fail", renews, caller.name)
        returned = caller.outcome == "returned" and caller.status == 401
        if returned and caller.sends == 1 and caller.rejected and not party.rotates and not caller.was_frozen:
            stands = (
                caller.notes["held"]
                or (self.shared and (self.fleet.brakes(caller) or self._limited(self.world.now)))
                or not caller.request
                or not caller.request.content.replayable
            )
            self.check("a 401 is answered with a replay, if one may help", stands, caller.name)

    def _failure_justified(self, caller: Caller, error: BaseException | None, waited: float) -> None:
        now, party = self.world.now, caller.party
        book = self.books.get(party.key) if party.key else None
        verdict = any(
            b.refusal is not None and b.refusal.holds(now)
            for b in ([book] if book is not None and not party.rotates else self.books.values())
        )
        verdict = verdict or (self.shared and (self.fleet.refuses() or self.fleet.fails()))
        patience = min(party.timeout, party.max_wait) if party.rotates else party.max_wait
        haste = _HASTE if self.shared else EPSILON  # those who wait fail together, if about as patient
        patient = waited + caller.called < patience - haste
        if isinstance(error, RateLimitError):
            fair = self.fleet.endpoint.limited_at >= caller.asked.mono or self._limited(now)
            fair = fair or (self.shared and not patient)
        else:
            fair = verdict or self.fleet.failed_true >= caller.asked_true or not patient
        if self.shared:  # who joins a flight shares what its leader has found, though it was told before
            fair = fair or self.failed_fairly == self.world.true
            self.failed_fairly = self.world.true
        self.check("a failure has a cause in the gateway", fair, f"{caller.name}: {error!r} after {waited:.3f} s")

    def waited(self, caller: Caller) -> None:
        """A caller has done waiting for a token, one way or another."""
        party = caller.party
        if caller.minted is not None and caller.outcome != "cancelled":
            party.key = self.fleet.minted[caller.minted.access_token].key
        if caller.was_frozen or caller.outcome == "cancelled":
            return
        waited = self.world.mono - caller.asked.mono - caller.called
        self.check("nobody waits past max_wait", waited <= party.max_wait + party.timeout + _SLACK, f"{waited:.3f} s")
        self.check(
            "waiters see at most two connections lost in a flight",
            caller.losses_seen <= _MOST_LOSSES_SEEN * (3 if party.rotates else 1),
            f"{caller.name} saw {caller.losses_seen}",
        )
        found = caller.notes["found"]
        gone = found is None or found.rejected or found.forgotten or self.world.stepped_at >= caller.asked_true
        if not gone and found.lives(self.world.now, party.leeway):
            most = party.timeout * (3 if party.rotates else 1) + _SLACK  # once for each secret
            self.check("a renewal costs its caller one timeout, while a token lives", waited <= most, f"{waited:.3f} s")

    def _names(self, *callers: Caller | None) -> str:
        return ", ".join(caller.name for caller in callers if caller is not None)

    def idle(self) -> None:
        """Nobody can run, and time is about to jump."""
        waiting = []
        for caller in self.active:
            if isinstance(caller.effect, TokenRequest | Sleep | Call) or caller.waits_for_cache or caller.was_frozen:
                return
            if caller.waits_for_caller:
                waiting.append(caller)
        self.check("nobody waits for nobody", not waiting, self._names(*waiting))

    def over(self) -> None:
        """The world has come to rest."""
        self.check("every caller finishes", not self.active, self._names(*self.active))


def _served(caller: Caller) -> str | None:
    """Return the token that a caller was given, or None where that is told to nobody."""
    if isinstance(caller.effect, Send):
        return str(caller.effect.request.headers.get("Authorization", "")).removeprefix("Bearer ")
    return caller.value.access_token if caller.kind == "get_token" and caller.outcome == "returned" else None
