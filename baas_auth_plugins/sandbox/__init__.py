"""The gateways on loopback, as strict as their pages: for tests, demos and work without credentials."""

from __future__ import annotations

from ._faults import Fault
from ._messages import RecordedRequest
from ._sandbox import Sandbox
from ._tokens import IssuedToken

__all__ = ["Fault", "IssuedToken", "RecordedRequest", "Sandbox"]
