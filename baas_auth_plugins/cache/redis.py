"""The cache that a fleet shares: Redis or Valkey, by way of redis-py (extra `redis`).

One key at a time and two small scripts, so that a single node, Sentinel and a cluster are alike. `_fleet`
encrypts the values and bounds the time, as for every shared cache.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from cryptography.hazmat.primitives.ciphers import aead  # noqa: F401  # imported once, before a server forks its workers

try:
    from redis.client import NEVER_DECODE
    from redis.connection import ConnectionPool
except ImportError as _missing:
    raise ImportError("the Redis cache needs redis-py: pip install 'baas-auth-plugins[redis]'") from _missing

from ..exceptions import ConfigurationError

if TYPE_CHECKING:
    from redis import Redis
    from redis.cluster import RedisCluster

__all__ = ["RedisTokenCache"]

_GET = """
local value = redis.pcall('GET', KEYS[1])
if type(value) ~= 'string' then return false end
return {value, redis.call('PTTL', KEYS[1])}
"""
_SWAP = """
local value = redis.pcall('GET', KEYS[1])
if type(value) ~= 'string' then value = '' end
if value ~= ARGV[1] then return 0 end
local done = 0
if ARGV[2] == '' then done = redis.pcall('DEL', KEYS[1]) else done = redis.pcall('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
if type(done) == 'table' and done.err then return redis.error_reply(done.err:match('READONLY.*') or done.err) end
return 1
"""
# After a failover the old master is a replica. An error that begins with READONLY makes the client of Sentinel connect to
# the new master; in the error of a script, Redis before 7 puts the script's name before it.
_NOT_PICKLED = ("credential_provider", "redis_connect_func")


class RedisTokenCache:
    """Keeps tokens in Redis, encrypted, for all processes that know the client secret.

    Args:
        client: a `redis.Redis` or `redis.cluster.RedisCluster`. It is used as it is and never closed.
        namespace: what the keys begin with.

    Raises:
        ConfigurationError: `client` is something else, such as an async client.
    """

    blocking: ClassVar[bool] = True

    def __init__(self, client: Redis | RedisCluster, *, namespace: str = "baas-auth") -> None:
        execute = getattr(client, "execute_command", None)
        is_client = hasattr(client, "pipeline") and not hasattr(client, "execute")  # nor a pipeline, nor Sentinel
        if isinstance(client, type) or not is_client or execute is None or inspect.iscoroutinefunction(execute):
            raise ConfigurationError(
                "client must be a redis.Redis or RedisCluster (the sync one serves async code, too);"
                " with Sentinel it is what master_for() returns"
            )
        if not isinstance(namespace, str) or not namespace:
            raise ConfigurationError("namespace must be a non-empty str")
        self._client: Any = client
        self._namespace = namespace

    def get(self, key: str) -> tuple[bytes, float] | None:
        """Return the value and the seconds until it expires, or None: see `TokenCache`."""
        kept = self._run(_GET, key)
        return (kept[0], kept[1] / 1000) if kept else None

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Replace a value if it still is `old`, and return whether it was replaced: see `TokenCache`."""
        return bool(self._run(_SWAP, key, old or b"", new or b"", max(1, int(ttl * 1000))))

    def _run(self, script: str, key: str, *arguments: bytes | int) -> Any:
        name = f"{self._namespace}:{key}"
        return self._client.execute_command("EVAL", script, 1, name, *arguments, **{NEVER_DECODE: []})

    def __reduce__(self) -> tuple[Any, ...]:
        pool = getattr(self._client, "connection_pool", None)
        options = getattr(pool, "connection_kwargs", {})
        if type(pool) is not ConnectionPool or any(options.get(name) for name in _NOT_PICKLED):
            raise TypeError("this Redis client cannot be pickled; make the RedisTokenCache in each process")
        plain = {name: value for name, value in options.items() if isinstance(value, str | bytes | int | float)}
        return _unpickled, (type(self), type(self._client), pool.connection_class, plain, self._namespace)

    def __deepcopy__(self, memo: object) -> RedisTokenCache:
        return self  # one connection pool serves all copies


def _unpickled(
    cls: type[RedisTokenCache], client: type[Redis], connection: Any, options: dict[str, Any], namespace: str
) -> RedisTokenCache:
    return cls(client(connection_pool=ConnectionPool(connection_class=connection, **options)), namespace=namespace)
