"""One seed, from the first call to the last: callers, gateway, troubles and referee put together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from baas_auth_plugins._flow import Call, Join, Release, Sleep, TokenRequest
from baas_auth_plugins._fork import _after_fork_in_child
from baas_auth_plugins._httpx import Send
from baas_auth_plugins.cache import MemoryTokenCache, TokenCache

from .callers import FOREIGN, HOME, Body, Caller, Party, Request, requests_flow
from .fleet import FleetReferee
from .gateway import Gateway, Key, Reply, key_of
from .invariants import InvariantError, Referee
from .process import Process, process_globals
from .scenario import SECRET, Scenario, Vault, build_parties
from .store import LYING, TROUBLES, Connection, Operation, Store
from .world import Host, Task, World

__all__ = ["Figures", "Simulation", "simulate"]

_MOST_STEPS = 60_000


@dataclass
class Figures:
    """What a run amounts to."""

    seeds: int = 0
    seconds: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    token_requests: int = 0
    api_requests: int = 0
    processes: int = 0
    operations: int = 0
    steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)

    def add(self, other: Figures) -> None:
        """Add another run's."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def simulate(seed: int, trace: Callable[[str], object] | None = None) -> Figures:
    """Run one seed.

    Raises:
        InvariantError: an invariant does not hold.
    """
    return Simulation(seed, trace).run()


class Simulation:
    """Everything of one seed."""

    def __init__(self, seed: int, trace: Callable[[str], object] | None = None) -> None:
        self.scenario = scenario = Scenario.draw(seed)
        self.world = World(seed)
        self.random = self.world.random
        self.figures = Figures(seeds=1)
        self.gateway = Gateway(self.world, scenario.climate, self.figures.faults)
        limit, shared = scenario.provider.token_rate_limit, scenario.shared_cache
        self.fleet = FleetReferee(self.world, limit, self.gateway, shared=shared)
        self.store = Store(
            self.world, scenario.cache_stormy, self.figures.faults, self.fleet.trouble, self.fleet.changed, self._enter
        )
        self.processes = self.fleet.processes
        self.vault: Vault | None = None
        self._process: Process | None = None
        self._operation: Operation | None = None
        self._trace = trace
        if trace is not None:
            self.fleet.note = self.note
        self._callers = 0
        self._freezes = False
        self._bursts = scenario.bursts
        self._left_behind: list[Generator[Any, Any, Any]] = []
        self._gone: list[Process] = []

    def run(self) -> Figures:
        """Let everything happen."""
        with process_globals(self._in_daemon_thread), self.world.clocks(self.scenario.seed):
            self.note("the world", str(self.scenario))
            try:
                self._prepare()
                self.world.at(0.0, self._burst)
                self.world.run(self._step, self.fleet.idle)
                self.fleet.over()
            finally:
                self.store.closed = True
                for flow in (*self._left_behind, *(caller.flow for caller in self.fleet.active())):
                    flow.close()
        self.figures.seconds = self.world.true
        self.figures.checks = self.fleet.checks
        self.figures.operations = self.store.operations
        return self.figures

    def note(self, who: str, what: object) -> None:
        """Write a line of the trace."""
        if self._trace is not None:
            now = self.world.now
            self._trace(f"{self.world.true:13.3f} [wall {now.wall - 1.75e9:+.3f} mono {now.mono:.3f}] {who}: {what}")

    @property
    def parties(self) -> list[Party]:
        """All auth objects of all processes."""
        return [party for process in self.processes for party in process.parties]

    def _prepare(self) -> None:
        if self.scenario.callable_secret:
            self.vault = self.fleet.vault = Vault()
        for number in range(self.scenario.processes):
            self.processes.append(self._new_process(number))

    def _new_process(self, number: int) -> Process:
        """Start a process: it knows nothing."""
        scenario = self.scenario
        host = Host(scenario.skews[number % len(scenario.skews)])
        rng = self.random
        if scenario.processes > 1:
            host.zero = rng.uniform(0, 1e6)
            if scenario.alike:
                rng = random.Random(f"parties {scenario.seed}")  # noqa: S311  # a simulation, not cryptography
        referee = Referee(self.world, self.fleet, scenario.shared_cache)
        process = Process(number, host, referee)
        self.figures.processes += 1
        self._enter(process)
        cache: TokenCache = Connection(self.store) if scenario.shared_cache else MemoryTokenCache()
        accept = self.gateway.accepted.add
        process.parties = build_parties(scenario, rng, self.vault, process, cache, accept, self._spawner)
        if self.vault is not None:
            self._accept_vault(process)
        elif scenario.shared_cache:
            self.fleet.seal = process.parties[0].grant.client.seal(SECRET)
        return process

    def _enter(self, process: Process) -> Process | None:
        """Go on as this process; return the one before."""
        before = self._process
        if process is not before:
            if before is not None:
                before.leave()
            self._process, self.world.host = process, process.host
            process.enter()
        return before

    def _in_daemon_thread(self, work: Callable[[], None]) -> None:
        """Leave what may block to the virtual world."""
        assert self._process is not None
        self._operation = operation = self.store.start(self._process, work)
        if operation is not None:
            self.note(f"process {self._process.number}", f"an operation on the cache: {operation.fate}")

    def _accept_vault(self, process: Process) -> None:
        assert self.vault is not None
        for party in process.parties:
            self.gateway.accepted.add(key_of(party.grant.client.token_request(self.vault.secret, {})(1.0)))

    def _spawner(self, party: Party) -> Callable[[Generator[Any, Any, None]], None]:
        """Return what runs background renewals: as one more caller."""

        def spawn(flow: Generator[Any, Any, None]) -> None:
            if self.random.random() < 0.05:
                self.figures.faults["no thread can be started"] += 1
                party.process.referee.no_thread_true = self.world.true
                raise RuntimeError("can't start new thread")
            party.process.referee.active[self._start(party, "background", flow)] = None

        return spawn

    # Traffic.

    def _burst(self) -> None:
        """Some callers come at about the same time; then it is quiet for a while."""
        rng, scenario = self.random, self.scenario
        size = rng.randint(1, scenario.crowd)
        spread = rng.choice((0.0, 0.0, 0.1, 3.0, 20.0))
        for _ in range(size):
            self.world.after(rng.uniform(0, spread), self._call)
        if scenario.troubles and rng.random() < 0.4:
            self.world.after(rng.uniform(0, spread + 1), partial(self._trouble, rng.choice(scenario.troubles)))
        self._bursts -= 1
        if self._bursts > 0:
            self.world.at(self.world.true + max(self._gap(), 0.001), self._burst)

    def _gap(self) -> float:
        """Return seconds until the next burst: often just where a token turns stale, critical or dead."""
        rng, life = self.random, self.scenario.climate.life
        kind = rng.random()
        if kind < 0.25:
            return rng.uniform(0, 10)
        if kind < 0.4:
            return rng.uniform(10, 90)
        if kind < 0.8:
            party = rng.choice(self.parties)
            self._enter(party.process)
            known = party.process.referee.usable(party)
            if known is not None:
                margin = rng.choice(known.margins(party.leeway))
                return known.left(self.world.now) - margin + rng.choice((-2.0, -0.3, -0.01, 0.01, 0.5, 4.0))
        if kind < 0.97:
            return rng.uniform(0, 2 * life)
        return rng.uniform(3600, 2 * 86400)

    def _call(self) -> None:
        rng, scenario = self.random, self.scenario
        party, kind = rng.choice(self.parties), rng.choice(scenario.clients)
        self._enter(party.process)
        if kind == "get_token":
            caller = self._start(party, kind, self._get_token(party))
        else:
            body = Body("bytes" if scenario.plain else rng.choice(Body.KINDS), kind)
            path = "/denied" if rng.random() < scenario.denied else rng.choice(("/pix",) * 12 + ("/moved",))
            request: Any = Request(kind, body, path, FOREIGN if rng.random() < 0.02 else HOME)
            flow = party.face._flow(request) if kind == "httpx" else requests_flow(party.face, request)
            caller = self._start(party, kind, flow, request)
        if rng.random() < scenario.impatience:
            patience = rng.choice((0.0, 0.01, 0.1, 1.0, 5.0))
            self.world.after(rng.uniform(0, patience), partial(self.world.resume, caller, "cancel"))

    def _get_token(self, party: Party) -> Generator[Any, Any, Any]:
        return (yield from party.grant.acquire({}))

    def _start(self, party: Party, kind: str, flow: Generator[Any, Any, Any], request: Request | None = None) -> Caller:
        self._callers += 1
        caller = Caller(f"{kind} {self._callers} of {party.name}", party, kind, flow, request)
        self.world.resume(caller, "send")
        return caller

    # One step of one caller.

    def _step(self, task: Task) -> None:
        assert isinstance(task, Caller)
        caller, referee = task, task.party.process.referee
        self._enter(caller.party.process)
        self.figures.steps += 1
        referee.check("the world comes to rest", self.figures.steps < _MOST_STEPS)
        first, pending = caller.epoch == 0, caller.effect
        how, value = caller.action or ("send", None)
        if first:
            self.note(caller.name, "starts")
            referee.asked(caller)
        if caller.exchange is not None:
            caller.exchange.over = True  # whatever is still under way never arrives
        answered = isinstance(pending, Send) and how == "send" and caller.request is not None
        if answered:
            caller.status = value.status_code
            self.note(caller.name, f"the API answers {caller.status}")
            referee.api_answer(caller, pending.request, value.status_code)
            if caller.rejected and caller.sends == 1:
                referee.asked(caller)
        if how == "throw":
            self.fleet.failed_true = self.world.true
        caller.reply = value if isinstance(value, Reply) else None
        if caller.reply is not None:
            self.note(caller.name, f"the token endpoint: {_told(caller.reply)}")
            caller.action = ("lost", None) if caller.reply.response is None else ("send", caller.reply.response)
        asked_cache = caller.waits_for_cache
        self._operation = None
        caller.effect = effect = caller.advance()
        referee.cache_step(caller, self._operation, asked=asked_cache)
        if isinstance(pending, TokenRequest):
            referee.token_request_over(caller, caller.reply)
        referee.stepped(caller, pending, how)
        if caller.kind == "invalidate":
            referee.forgotten()  # at each step, since a token may come while it waits
        if not isinstance(pending, Send) and (isinstance(effect, Send) or caller.done):
            referee.waited(caller)
        if first and how != "cancel":
            referee.first_step(caller)
        if caller.kind == "get_token" and caller.outcome == "returned":
            referee.served(caller, caller.value.access_token)
        if caller.done:
            self.figures.calls[f"{caller.kind}: {_ended(caller)}"] += 1
            self.note(caller.name, f"{_ended(caller)} {caller.error or ''}")
            referee.finished(caller)
        else:
            referee.effect(caller)
            self._perform(caller, effect)

    def _perform(self, caller: Caller, effect: Any) -> None:
        world, resume = self.world, self._resumer(caller)
        if self._trace is not None:
            self.note(caller.name, _shown(effect))
        match effect:
            case TokenRequest():
                self.figures.token_requests += 1
                referee = caller.party.process.referee
                referee.token_request(caller, effect)
                caller.exchange = self.gateway.token_request(
                    effect, lambda reply: resume("send", reply), referee.arrival
                )
                if self._freezes and caller.kind == "httpx":  # threads do not hang, event loops do
                    self._freezes = False
                    self._freeze(caller)
            case Send(request):
                self._send(caller, request, resume)
            case Sleep(seconds):
                world.after(seconds, lambda: resume("send"))
            case Join(waiter, seconds):
                waiter.notify = lambda: resume("send")
                if waiter.woken:
                    resume("send")
                world.after(seconds, lambda: resume("send"))
            case Call(function, timeout):
                self._call_out(caller, function, timeout, resume)
            case Release():
                resume("send")

    def _resumer(self, caller: Caller) -> Callable[..., None]:
        """Return what resumes the caller from where it is now; too late, it does nothing."""
        epoch = caller.epoch

        def resume(how: str, value: Any = None) -> None:
            if caller.epoch == epoch:
                self.world.resume(caller, how, value)

        return resume

    def _call_out(
        self, caller: Caller, function: Callable[[], Any], timeout: float, resume: Callable[..., None]
    ) -> None:
        """Call the vault or the cache in a thread; async code does not wait for it longer than its timeout."""
        began, seconds = self.world.mono, self.random.choice((0.001, 0.01, 0.3))
        if self.random.random() < 0.05:
            self.figures.faults["a blocking call took long"] += 1
            seconds = self.random.choice((4.0, 12.0))

        def over(how: str, value: Any) -> None:
            if caller.effect is not effect:
                return
            if how == "throw":
                self.figures.faults[f"a blocking call raised {type(value).__name__}"] += 1
                if function is self.vault:
                    caller.party.process.referee.vault_failed()
            caller.called += self.world.mono - began
            resume(how, value)

        def call() -> None:
            try:
                value = function()
            except Exception as error:
                over("throw", error)
            else:
                over("send", value)

        effect = caller.effect
        if caller.kind == "httpx" and seconds > timeout:
            self.world.after(timeout, lambda: over("throw", TimeoutError()))
        self.world.after(seconds, call)

    def _send(self, caller: Caller, request: Request, resume: Callable[..., None]) -> None:
        self.figures.api_requests += 1
        caller.party.process.referee.api_request(caller, request, request.content.send())
        authorization = request.headers.get("Authorization")

        def answer(status: int | None) -> None:
            if status is None:
                resume("lost")
                return
            last = request
            if request.path == "/moved" and request.origin != FOREIGN:  # where clients take the header off
                self.figures.faults["API: redirected elsewhere"] += 1
                last, status = Request(request.client, request.content, "/", FOREIGN), 401
                caller.redirected = True
            resume("send", SimpleNamespace(status_code=status, request=last))

        caller.exchange = self.gateway.api_request(request.path, authorization, answer)

    # Troubles.

    def _trouble(self, kind: str) -> None:
        rng, world = self.random, self.world
        process = self.processes[0] if len(self.processes) == 1 else rng.choice(self.processes)
        self._enter(process)
        self.figures.faults[f"trouble: {kind}"] += 1
        self.note("trouble", f"{kind}, in process {process.number}")
        match kind:
            case "revoke":
                self.gateway.revoke()
            case "wall clock step":
                self.fleet.trouble()
                world.step_wall_clock(rng.choice((-1, 1)) * rng.choice((2, 60, 3600, 86_400)))
            case "sleep":
                world.suspend(rng.choice((1, 30, 600, 20_000)))
                self.fleet.trouble()
            case "fork":
                self._fork(process)
            case "kill":
                self._kill(process)
            case "freeze":
                self._freezes = True  # whoever sends the next token request
            case "rotate" if self.vault is not None:
                old = set(self.gateway.accepted)
                self.vault.rotate()
                for one in self.processes:
                    self._accept_vault(one)
                self.fleet.trouble()  # whoever has the new secret knows nothing of what was told under the old one
                self.world.at(world.true + rng.choice((0, 60)), lambda: self._retire(old))
            case "vault" if self.vault is not None:
                self.vault.sealed = not self.vault.sealed
            case "invalidate":
                party = rng.choice(process.parties)
                self._start(party, "invalidate", self._invalidate(party))
            case _ if kind in TROUBLES:
                self.store.trouble(kind)
                if kind in LYING:
                    self.fleet.lied()

    def _retire(self, keys: set[Key]) -> None:
        self.gateway.accepted -= keys
        if self.random.random() < 0.5:
            for key in sorted(keys):
                if key in self.gateway.current:
                    self.gateway.current[key].dead = True

    def _invalidate(self, party: Party) -> Generator[Any, Any, None]:
        yield from party.grant.invalidate()

    def _freeze(self, caller: Caller) -> None:
        """Let a caller's event loop hang for long enough to be given up, and others call when it comes back."""
        rng = self.random
        seconds = rng.choice((rng.uniform(10, 70), rng.uniform(60, 400)))
        caller.was_frozen = True
        caller.frozen_since, caller.frozen_until = self.world.mono, self.world.mono + seconds
        self.fleet.trouble(seconds)
        self.note(caller.name, f"hangs for {seconds:.1f} s")
        for _ in range(rng.randint(0, 6)):
            self.world.after(rng.choice((rng.uniform(0, seconds), seconds + rng.uniform(0, 5))), self._call)

    def _fork(self, process: Process) -> None:
        """Go on as the child: whoever was under way exists in the parent only."""
        self._vanish(process)
        _after_fork_in_child()

    def _kill(self, process: Process) -> None:
        """End a process with no goodbye, and start another in its place."""
        process.gone = True
        self._gone.append(process)  # kept, so that nothing of it runs
        self._vanish(process)
        self.processes[process.number] = self._new_process(process.number)

    def _vanish(self, process: Process) -> None:
        """Take away whoever is under way in a process, without a further step."""
        self.store.vanish(process)
        for caller in list(process.referee.active):
            caller.done = True
            if caller.exchange is not None:
                caller.exchange.over = True
            self._left_behind.append(caller.flow)
        process.referee.vanished(process)
        self.world.drop(lambda task: task.done or (task.party.process is process and process.gone))


def _told(reply: Reply) -> str:
    return f"{reply.kind} {reply.response.status_code if reply.response else ''} {reply.issued or ''}"


def _ended(caller: Caller) -> str:
    if caller.outcome == "failed":
        return f"failed with {type(caller.error).__name__}"
    return f"answered {caller.status}" if caller.outcome == "returned" and caller.status else caller.outcome


def _shown(effect: Any) -> str:
    match effect:
        case TokenRequest():
            return f"token request, timeout {effect.timeout:.3f}"
        case Send(request):
            return f"API request to {request.origin}{request.path} with {request.headers.get('Authorization')}"
        case Join(_, timeout):
            return f"waits for another, at most {timeout:.3f}"
    return str(effect)


__all__ += ["InvariantError"]
