"""Processes that are forked, or get their auth object pickled."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import requests
from conftest import api_url, make
from redis_servers import (
    LOOPBACK,
    Member,
    RedisServer,
)

from baas_auth_plugins import (
    AvistaAuth,
    BS2Auth,
    OAuth2ClientCredentialsAuth,
)
from baas_auth_plugins.cache.redis import RedisTokenCache
from baas_auth_plugins.sandbox import Sandbox
from fleet.conftest import LONG_LEASE, elsewhere

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_fork_while_redis_is_being_used(server: RedisServer, sandbox: Sandbox) -> None:
    """A process forked while threads deal with Redis deals with it itself, at once, over connections of its own."""
    cache = RedisTokenCache(redis.Redis(LOOPBACK, server.port))
    auths = [
        make(AvistaAuth, sandbox, cache=cache, headers={"X-Thread": str(number)}, **LONG_LEASE) for number in range(3)
    ]
    done = threading.Event()

    def mint(auth: OAuth2ClientCredentialsAuth) -> None:
        while not done.is_set():
            auth.invalidate()
            auth.get_token()

    class Child:
        def work(self) -> None:
            for auth in auths[:2]:
                auth.get_token()
                auth.invalidate()
                auth.get_token()

    with ThreadPoolExecutor(len(auths)) as pool:
        busy = [pool.submit(mint, auth) for auth in auths]
        try:
            for _ in range(4):
                child = Member(Child)
                assert child.do("work") is None
                child.kill()
        finally:
            done.set()
    assert [thread.exception() for thread in busy] == [None] * len(auths)


def test_pickled_auth_object_finds_its_fleet(server: RedisServer, sandbox: Sandbox) -> None:
    """An auth object sent to a process that shares nothing finds the token of its fleet there, by way of Redis."""
    auth = elsewhere(sandbox, server.port)
    auth.get_token()
    worker = multiprocessing.get_context("spawn").Process(target=_call, args=(auth, api_url(BS2Auth, sandbox)))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert sandbox.count("token") == 1


def _call(auth: OAuth2ClientCredentialsAuth, url: str) -> None:
    sys.exit(requests.get(url, auth=auth, timeout=10).status_code != 200)
