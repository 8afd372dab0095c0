"""A deterministic simulation of the package: real flows, virtual time, a seeded scheduler, a faulty gateway.

The production code runs as it is: `Grant`, `TokenSource`, `SingleFlight`, `Exchange`, `RateLimiter` and the
httpx face's flow. Since flows are generators that yield what they want done, nothing here needs a
thread: a scheduler picks, with a seeded random generator, which caller takes its next step.

- `world`: three clocks, timers, and the scheduler that interleaves callers at every yield.
- `gateway`: token endpoint and API, with a weather of faults, on its own true time.
- `process`: what a process has to itself, so that there can be several.
- `store`: the cache that a fleet of processes shares, with faults of its own.
- `callers`: what a call is: its body, its request, the flow it runs, and the client that performs it.
- `ledger`: what the process was told so far, written down independently of the production code.
- `invariants`: what must hold at each event in a process. A broken one raises `InvariantError`.
- `fleet`: what must hold for all processes together, while their cache works: one mint per fleet.
- `scenario`: what one seed means: who calls, how often, and what goes wrong.
- `plants`, `fleet_plants`: bugs planted into the production code one at a time, to prove that the invariants bite.

Run it with ``python -m tests.simulation --seeds 1000``, replay a failure with ``--seed N --trace``.
"""
