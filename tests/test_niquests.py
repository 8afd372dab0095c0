"""niquests, a fork of requests with classes of its own, works through the requests face by duck typing."""

from __future__ import annotations

import io

import pytest
import requests

from baas_auth_plugins import AxiaAuth, MemoryTokenCache
from baas_auth_plugins.sandbox import Sandbox

niquests = pytest.importorskip(
    "niquests", reason="niquests replaces urllib3 under requests, so `.ci/run` gives it an environment of its own"
)


def test_session_is_authenticated_and_healed() -> None:
    """A niquests session gets the token, and after a revocation one replay, a file rewound to where it stood."""
    with Sandbox() as sandbox, niquests.Session() as session, requests.Session() as minting:
        session.auth = AxiaAuth(
            sandbox.client_id,
            sandbox.client_secret,
            base_url=sandbox.url,
            cache=MemoryTokenCache(),
            session=minting,
        )
        assert session.get(f"{sandbox.url}/v1/accounts").status_code == 200
        sandbox.revoke_all()
        file = io.BytesIO(b"0123456789")
        file.seek(3)
        response = session.post(f"{sandbox.url}/v1/pix/payment", data=file)
        assert (response.status_code, response.json()["body"]) == (200, "3456789")
        assert [answer.status_code for answer in response.history] == [401]
        assert sandbox.count("token") == 2
