"""The gateways on loopback: strict to their pages, for tests, demos and work without credentials."""

from __future__ import annotations

from ._faults import Fault
from ._messages import RecordedRequest
from ._sandbox import Sandbox

__all__ = ["Fault", "RecordedRequest", "Sandbox"]
