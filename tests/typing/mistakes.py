"""Mistakes: a type checker must report every line that is marked, and no other."""

from __future__ import annotations

from baas_auth_plugins import AxiaAuth, BS2Auth, Event, MemoryTokenCache, TokenMinted, events, testing


class HalfACache:
    """It cannot swap."""

    def get(self, key: str) -> tuple[bytes, float] | None:
        return None


class OtherCache:
    """Its values are text."""

    def get(self, key: str) -> str | None:
        return None

    def swap(self, key: str, old: str | None, new: str | None, ttl: float) -> bool:
        return False


async def secret() -> str:
    return "your-client-secret"


def listen(event: Event, more: int) -> None:
    pass


def mistakes(auth: AxiaAuth, minted: TokenMinted) -> None:
    AxiaAuth.from_env(leway=3)  # mistake
    AxiaAuth.from_env(leeway="3")  # mistake
    AxiaAuth.from_env(clientid="your-client-id")  # mistake
    AxiaAuth()  # mistake
    AxiaAuth("your-client-id", "your-client-secret", "scope")  # mistake
    AxiaAuth("your-client-id", b"your-client-secret")  # mistake
    AxiaAuth("your-client-id", secret)  # mistake
    AxiaAuth("your-client-id", "your-client-secret", leway=3)  # mistake
    AxiaAuth("your-client-id", "your-client-secret", cache=MemoryTokenCache)  # mistake
    AxiaAuth("your-client-id", "your-client-secret", cache=HalfACache())  # mistake
    AxiaAuth("your-client-id", "your-client-secret", cache=OtherCache())  # mistake
    AxiaAuth("your-client-id", "your-client-secret", cache={})  # mistake
    AxiaAuth("your-client-id", "your-client-secret", timeout=None)  # mistake
    AxiaAuth("your-client-id", "your-client-secret", headers=["X-A"])  # mistake
    AxiaAuth("your-client-id", "your-client-secret", on_event=listen)  # mistake
    AxiaAuth("your-client-id", "your-client-secret", background_renewal="yes")  # mistake
    BS2Auth("your-client-id", "your-client-secret", scope=7)  # mistake
    BS2Auth.from_env().introspect()  # mistake
    print(auth.get_token().acces_token)  # mistake
    auth.get_token().access_token = "x"  # mistake
    print(minted.reason == "colder")  # mistake
    minted.duration = 3  # mistake
    auth.call_with_token(lambda: 200)  # mistake
    events.subscribe(listen)  # mistake
    testing.stub_token(None, "axia")  # mistake
