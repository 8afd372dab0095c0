"""Running one seed: who calls when, what goes wrong, and the driver that performs what flows yield."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from baas_auth_plugins import _process
from baas_auth_plugins._http.flow import Answer, SendRequest
from baas_auth_plugins._lifecycle import credentials, effects
from baas_auth_plugins._lifecycle.effects import Flow, Job, ReadResponse, RunInThread, SendTokenRequest, Sleep, Wait
from baas_auth_plugins._oauth.messages import NetworkError, TokenRequest

from .callers import FOREIGN, HOME, ApiLostError, Caller, InterruptError, Request, flow_of
from .gateway import Gateway, Reply
from .invariants import Fleet, InvariantError, Sent
from .process import Party, Process, Vault, build_parties
from .scenario import Scenario
from .store import TROUBLES, Blocked, Store
from .world import Host, World

__all__ = ["Figures", "InvariantError", "Simulation", "patched", "simulate"]

_MOST_STEPS = 200_000
_logger = logging.getLogger("baas_auth_plugins")


@dataclass
class Figures:
    """What was simulated."""

    seeds: int = 0
    seconds: float = 0.0
    steps: int = 0
    token_requests: int = 0
    operations: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)


class _Thread:
    """Stands for `threading.Thread` in the code under test."""

    def __init__(self, target: Any, args: tuple[Any, ...] = (), **_: Any) -> None:
        self.target = target
        self.args = args
        self.caller: Caller | None = None

    def start(self) -> None:
        """Start it in the simulation that runs."""
        _running[-1].start_thread(self)

    def is_alive(self) -> bool:
        """Whether its caller is still under way."""
        return self.caller is not None and not self.caller.outcome


class _Event:
    """Stands for `threading.Event` in the code under test: a function in a thread waits for it, at most some seconds."""

    def __init__(self) -> None:
        self._go_on: Callable[[], object] | None = None

    def set(self) -> None:
        """Let the function go on."""
        if self._go_on is not None:
            self._go_on()

    def wait(self, seconds: float) -> None:
        """Block the function that runs, unless it has waited long enough."""
        simulation = _running[-1]
        if simulation.has_waited:
            return

        def begin(finish: Callable[[Callable[[], Any]], None]) -> None:
            world, process = simulation.world, simulation.current
            assert process is not None
            function, is_due = process.job_function, True

            def go_on(*, has_waited: bool) -> None:
                nonlocal is_due
                if is_due:
                    is_due, simulation.has_waited = False, has_waited
                    finish(function)
                    simulation.has_waited = False

            self._go_on = lambda: world.soon(lambda: go_on(has_waited=False), process.host)
            world.after(seconds, lambda: go_on(has_waited=True), process.host)

        raise Blocked(begin)


_running: list[Simulation] = []


class Simulation:
    """One seed."""

    def __init__(self, seed: int, figures: Figures, trace: Callable[[str], object] | None, scenario: Scenario) -> None:
        self.scenario = scenario
        self.world = World(seed)
        self.rng = self.world.random
        self.figures = figures
        self._trace = trace
        self.gateway = Gateway(self.world, scenario.climate, figures.faults)
        self.fleet = Fleet(self.world, self.gateway, scenario, figures.checks)
        self.store = (
            Store(self.world, scenario.cache_stormy, figures.faults, self.enter) if scenario.is_shared else None
        )
        self.fleet.store = self.store
        self.vault = Vault(self.world, "client") if scenario.has_vault else None
        self.fleet.vault = self.vault
        self.gateway.accepted |= {("client", "another secret"), ("other", "another secret")}
        if self.vault is not None:
            self.gateway.accepted.add(self.vault.key)
        self.current: Process | None = None
        self.stepping: Caller | None = None
        self.thread: _Thread | None = None
        self._job: Job[Any] | None = None  # the one whose function runs
        self.is_closed = False
        self.has_waited = False
        self._sent: dict[Any, Sent] = {}  # token requests by the job that sends them
        self._count = 0
        self._hangs_next = False
        self._left_behind: list[Caller] = []
        self.processes: list[Process] = []

    def boot(self) -> None:
        """Start all processes."""
        zero, hosts = 0.0, list[Host]()
        for skew in self.scenario.skews:
            share = hosts and self.rng.random() < 0.3
            hosts.append(hosts[-1] if share else Host(skew=skew, zero=zero))
            zero += self.rng.choice((0.0, -3_000_000.0, 1_000_000.0))
        self.processes = [self._new_process(number, host) for number, host in enumerate(hosts)]

    # Processes.

    def _new_process(self, number: int, host: Host) -> Process:
        self._count += 1
        process = Process(number, host, f"process{self._count}")
        process.referee = self.fleet.referee(process)
        left = self.enter(process)
        build_parties(process, self.rng, self.scenario, self.store, self.vault, self._sender, self._renew)
        self.enter(left)
        return process

    def enter(self, process: Process | None) -> Process | None:
        """Go on as this process; return the one before."""
        before, self.current = self.current, process
        if process is not None:
            process.enter()
            self.world.host = process.host
        return before

    def _vanish(self, process: Process) -> None:
        """Whoever is under way in a process takes no further step."""
        for caller in list(self.fleet.active):
            if caller.party.process is process:
                caller.outcome = "vanished"
                caller.epoch += 1
                self._left_behind.append(caller)
                del self.fleet.active[caller]
        if self.store is not None:
            self.store.vanish(process)
        self.fleet.sent = [sent for sent in self.fleet.sent if sent.process is not process]
        self._sent = {job: sent for job, sent in self._sent.items() if sent.process is not process}
        process.referee.vanished()

    # Threads of the code under test.

    def start_thread(self, thread: _Thread) -> None:
        """Start a thread: a job, or a background renewal."""
        if self.is_closed:
            return
        if self.scenario.impatience and self.rng.random() < 0.01 and self.stepping is not None:
            self.figures.faults["interrupt: as a thread starts"] += 1
            self.fleet.interrupted(self.stepping)
            raise InterruptError
        job = getattr(thread.args[0], "__self__", None) if thread.args else None
        if isinstance(job, Job):
            self._run_job(job)
            return
        self.thread = thread
        thread.target()

    def _run_job(self, job: Job[Any]) -> None:
        process = self.current
        assert process is not None

        def run(function: Callable[[], Any]) -> None:
            if process.is_gone or self.is_closed:
                return
            left, process.job_function, self._job = self.enter(process), function, job
            try:
                value = function()
            except Blocked as blocked:
                blocked.begin(run)
            except BaseException as error:
                job._function = partial(_raise, error)
                job._run()
            else:
                job._function = lambda: value
                job._run()
            finally:
                self.enter(left)

        run(job._function)

    def _renew(self, flow: Flow[Any]) -> None:
        thread, caller = self.thread, self.stepping
        assert thread is not None
        assert caller is not None
        thread.caller = self.start("background", caller.party, flow)

    def _sender(self, request: TokenRequest, _is_awaited: Callable[[], bool]) -> Any:
        """Send a token request in a thread of the code under test."""
        caller, job = self.stepping, self._job

        def begin(finish: Callable[[Callable[[], Any]], None]) -> None:
            assert caller is not None
            self._sent[job] = self._send_token_request(
                caller, request, lambda reply: finish(partial(_response, reply)), in_thread=True
            )

        raise Blocked(begin)

    def _send_token_request(
        self, caller: Caller, request: TokenRequest, answer: Callable[[Reply], object], *, in_thread: bool
    ) -> Sent:
        self.figures.token_requests += 1
        self.note(caller, f"token request, timeout {request.timeout:.2f}")
        sent = self.fleet.token_request(caller, request, in_thread=in_thread)

        def answered(reply: Reply) -> None:
            if sent in self.fleet.sent:
                self.fleet.sent.remove(sent)
                sent.reply = reply
                answer(reply)

        self.gateway.token_request(request, lambda: self.fleet.arrived(sent), answered)
        if self._hangs_next and caller.kind == "httpx":
            self._hangs_next = False
            caller.notes["hangs until"] = self.world.true + self.rng.choice((8, 40, 120))
            self.fleet.hangs(caller)
        return sent

    # Callers.

    def start(self, kind: str, party: Party, flow: Flow[Any] | None = None) -> Caller:
        """Begin a call."""
        rng, scenario = self.rng, self.scenario
        self._count += 1
        request = None
        if kind in ("requests", "httpx"):
            denied = rng.random() < scenario.denied
            path = "/denied" if denied else rng.choice(("/pix",) * 15 + ("/moved", "/stripped"))
            origin = FOREIGN if rng.random() < 0.02 else HOME
            request = Request(path, origin, is_replayable=rng.random() >= scenario.unreplayable)
        left = self.enter(party.process)
        caller = Caller(
            f"{kind} {self._count} of {party.name}", kind, party, flow or flow_of(kind, party, request), request
        )
        self.enter(left)
        caller.has_hook = rng.random() < scenario.hooks
        self.fleet.active[caller] = None
        self.world.soon(lambda: self.step(caller, 0, "send", None), party.process.host)
        if kind != "background" and rng.random() < scenario.impatience:
            how = "interrupt" if kind in ("requests", "get_token") else "cancel"
            patience = rng.choice((0.0, 0.01, 0.1, 1.0, 5.0)) * rng.random()
            self.world.after(patience, lambda: self.step(caller, caller.epoch, how, None), party.process.host)
        return caller

    def step(self, caller: Caller, epoch: int, how: str, value: Any) -> None:
        """Let a caller go on, unless it has gone on since."""
        if caller.outcome or caller.epoch != epoch:
            return
        if caller.notes.get("hangs until", 0.0) > self.world.true:
            self.world.after(
                caller.notes["hangs until"] - self.world.true, lambda: self.step(caller, epoch, how, value)
            )
            return
        self.figures.steps += 1
        left, stepping, self.stepping = self.enter(caller.party.process), self.stepping, caller
        pending = caller.effect
        if isinstance(pending, RunInThread) and how == "send":
            value = pending.job.outcome_in_time()
        if how in ("cancel", "interrupt"):
            self.figures.faults[how] += 1
            self.note(caller, how)
        try:
            self.fleet.before_step(caller, pending, how, value)
            caller.step(how, value)
            self.fleet.after_step(caller, pending)
            if caller.outcome:
                self._end(caller)
            else:
                self._perform(caller, caller.effect)
        finally:
            self.enter(left)
            self.stepping = stepping

    def _end(self, caller: Caller) -> None:
        status = caller.notes.get("status")
        answered = caller.outcome == "returned" and status
        ended = (
            f"answered {status}"
            if answered
            else f"{caller.outcome} {type(caller.error).__name__ if caller.error else ''}"
        )
        self.figures.calls[f"{caller.kind}: {ended.strip()}"] += 1
        self.note(caller, f"{ended}: {caller.error or ''}")
        del self.fleet.active[caller]
        self.fleet.ended(caller)

    def _perform(self, caller: Caller, effect: Any) -> None:
        """Do what a flow yields, later."""
        world, host, epoch = self.world, caller.party.process.host, caller.epoch

        def resume(how: str, value: Any = None) -> None:
            world.soon(lambda: self.step(caller, epoch, how, value), host)

        if self._trace is not None and not isinstance(effect, SendTokenRequest):
            self.note(caller, _shown(effect))
        try:
            self._begin(caller, effect, resume)
        except InterruptError as error:
            resume("throw", error)

    def _begin(self, caller: Caller, effect: Any, resume: Callable[..., None]) -> None:
        world, host = self.world, caller.party.process.host
        match effect:
            case SendRequest():
                self._send(caller, effect.request, resume)
            case SendTokenRequest():
                self._send_token_request(caller, effect.request, partial(_answer, resume), in_thread=False)
                if self.rng.random() < 0.8:  # else the answer drips: no phase of it takes too long
                    world.after(effect.request.timeout, lambda: resume("lost"), host)
            case RunInThread():
                job = effect.job
                waiter = job.join()
                if job in self._sent:
                    self.fleet.awaits(caller, self._sent[job])
                waiter.notify = lambda: resume("send")
                if waiter.is_woken:
                    waiter.notify()
                world.after(effect.seconds, lambda: resume("send"), host)
            case Wait():
                effect.waiter.notify = lambda: resume("send")
                if effect.waiter.is_woken:
                    resume("send")
                world.after(effect.seconds, lambda: resume("send"), host)
            case Sleep():
                world.after(effect.seconds, lambda: resume("send"), host)
            case ReadResponse():
                world.after(self.rng.choice((0.0, 0.01, 1.0)), lambda: resume("send"), host)

    def _send(self, caller: Caller, request: Any, resume: Callable[..., None]) -> None:
        def answer() -> None:
            self.answer(caller, request, resume)

        self.world.after(self.rng.choice((0.01, 0.1, 2.0)), answer)

    def answer(self, caller: Caller, request: Request, resume: Callable[..., None]) -> None:
        """Let the API answer."""
        status = self.gateway.api_status(request.path, request.authorization)
        if request.origin == FOREIGN:
            status = 401
        if status is None:
            resume("lost" if caller.kind == "httpx" else "throw", ApiLostError())
        elif status == 401 and caller.has_hook and caller.kind == "httpx":
            resume("hook", 401)
        elif request.path in ("/moved", "/stripped") and "redirected" not in caller.notes and request.origin == HOME:
            caller.notes["redirected"] = True
            last = Request("/pix", FOREIGN if request.path == "/moved" else HOME, request.is_replayable)
            resume("send", Answer(401, last))
        else:
            resume("send", Answer(status, request))

    # Traffic and troubles.

    def run(self) -> None:
        """Run all bursts to their end."""
        self.world.after(0, lambda: self._burst(self.scenario.bursts))
        steps = self.world.run(_MOST_STEPS)
        self.fleet.check("the world comes to rest", steps < _MOST_STEPS)
        self.fleet.check("every caller finishes", not self.fleet.active, [one.name for one in self.fleet.active])

    def _burst(self, left: int) -> None:
        rng = self.rng
        spread = rng.choice((0.0, 0.0, 0.5, 5.0, 30.0))
        for _ in range(rng.randint(1, self.scenario.crowd)):
            party = rng.choice(rng.choice(self.processes).parties)
            process, index = party.process.number, party.process.parties.index(party)
            self.world.after(
                rng.uniform(0, spread),
                lambda process=process, index=index: self.start(
                    rng.choice(self.scenario.kinds), self.processes[process].parties[index]
                ),
            )
        if self.scenario.troubles and rng.random() < 0.5:
            self.world.after(rng.uniform(0, spread + 1), partial(self._trouble, rng.choice(self.scenario.troubles)))
        if left > 1:
            self.world.after(self._gap(), lambda: self._burst(left - 1))

    def _gap(self) -> float:
        rng, life = self.rng, self.scenario.climate.life
        margins = (min(self.scenario.leeway, life / 2), min(60, life / 10), min(5, life / 60))
        kind = rng.random()
        if kind < 0.3:
            return rng.uniform(0, 12)
        if kind < 0.5:
            return rng.uniform(10, 90)
        if kind < 0.8:  # just where a token becomes stale, critical or expired
            newest = max((issued.at for issued in self.gateway.tokens.values()), default=self.world.true)
            due = newest + life - rng.choice(margins) + rng.choice((-2.0, -0.3, 0.05, 1.0, 4.0))
            return max(0.1, due - self.world.true)
        return rng.uniform(0, 2 * life) if kind < 0.97 else rng.uniform(3600, 2 * 86_400)

    def _trouble(self, kind: str) -> None:
        rng, process = self.rng, self.rng.choice(self.processes)
        self.figures.faults[f"trouble: {kind}"] += 1
        self.note(None, f"{kind}, process {process.number}")
        match kind:
            case "revoke":
                self.gateway.revoke()
            case "revoke twice":
                self.gateway.revoke()
                self.world.after(rng.uniform(1, 60), self.gateway.revoke)
            case "step":
                self.world.step_wall_clock(process.host, rng.choice((-1, 1)) * rng.choice((2, 60, 3600, 86_400)))
                self.fleet.trouble()
            case "suspend":
                self.world.suspend(process.host, rng.choice((1, 30, 600, 20_000)))
                self.fleet.trouble(process.host.awake_at - self.world.true + 400)
            case "fork":
                self._vanish(process)
                left = self.enter(process)
                process.id = f"{process.id}+"
                process.enter()
                self.enter(left)
            case "crash":
                self._vanish(process)
                process.is_gone = True
                self._left_behind += [Caller("gone", "", party, iter(())) for party in process.parties]  # type: ignore[arg-type]
                self.processes[process.number] = self._new_process(process.number, process.host)
            case "hang":
                self._hangs_next = True
            case "invalidate":
                self.start("invalidate", rng.choice(process.parties))
            case "rotate" if self.vault is not None:
                old = self.vault.key
                self.vault.version += 1
                self.vault.rotated_at = self.world.true
                self.gateway.accepted.add(self.vault.key)
                self.world.after(rng.choice((0, 60)), lambda: self.gateway.accepted.discard(old))
            case _ if kind.startswith("vault") and self.vault is not None:
                self.vault.state = kind.rsplit(maxsplit=1)[-1]
                self.vault.failed_at = self.world.true
            case _ if self.store is not None and kind in TROUBLES:
                self.store.trouble(kind)

    def note(self, caller: Caller | None, text: str) -> None:
        """Write a line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.world.true:12.3f}  {caller.name if caller else 'TROUBLE':34}  {text}")

    def close(self) -> None:
        """End what is left behind, without consequences."""
        self.is_closed = True
        for caller in [*self._left_behind, *self.fleet.active]:
            left = self.enter(caller.party.process)
            with contextlib.suppress(BaseException):
                caller.flow.close()
            self.enter(left)


def _raise(error: BaseException) -> Any:
    raise error


def _response(reply: Reply) -> Any:
    if reply.response is None:
        raise NetworkError("connection reset")
    return reply.response


def _answer(resume: Callable[..., None], reply: Reply) -> None:
    if reply.response is None:
        resume("lost")
    else:
        resume("send", reply.response)


def _shown(effect: Any) -> str:
    match effect:
        case SendRequest():
            return f"API request {effect.request.path} {effect.request.authorization}"
        case Wait():
            return f"waits for another caller, at most {effect.seconds:.2f}"
        case Sleep():
            return f"sleeps {effect.seconds:.2f}"
        case RunInThread():
            return f"thread, at most {effect.seconds:.2f}: {getattr(effect.job._function, '__qualname__', 'vault')}"
    return type(effect).__name__


@contextmanager
def patched(simulation: Simulation) -> Iterator[None]:
    """Let the core run in a simulation: its clocks, its threads, its globals of a process."""
    level, thread = _logger.level, SimpleNamespace(Thread=_Thread, Event=_Event, get_ident=lambda: 1)
    _logger.setLevel(logging.CRITICAL + 1)
    _running.append(simulation)
    try:
        with ExitStack() as stack:
            for name in ("_by_owner", "_process_id"):
                stack.enter_context(patch.object(_process, name, getattr(_process, name)))
            stack.enter_context(patch.object(effects, "threading", thread))
            stack.enter_context(patch.object(credentials, "threading", thread))
            stack.enter_context(simulation.world.clocks())
            yield
    finally:
        _running.pop()
        _logger.setLevel(level)


def simulate(
    seed: int,
    trace: Callable[[str], object] | None = None,
    figures: Figures | None = None,
    scenario: Scenario | None = None,
) -> Simulation:
    """Run a seed.

    Raises:
        InvariantError: something does not hold.
    """
    figures = figures or Figures()
    simulation = Simulation(seed, figures, trace, scenario or Scenario.draw(seed))
    if trace is not None:
        trace(str(simulation.scenario))
    with patched(simulation):
        try:
            simulation.boot()
            simulation.run()
        finally:
            simulation.close()
    figures.seeds += 1
    figures.seconds += simulation.world.true
    figures.operations += simulation.store.operations if simulation.store else 0
    return simulation
