"""A deterministic simulation of the core: real flows, virtual time, a seeded scheduler, faults everywhere. See README.md."""
