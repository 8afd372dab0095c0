"""What the log says of a token's life: why one is requested, what came of it, and what callers get meanwhile.

Each text names the provider first, then the values, then what happens next. A token appears as its digest.
"""

from __future__ import annotations

import logging

from .._oauth.client import OAuthClient
from .._oauth.token import Instant, Token, digest

logger = logging.getLogger("baas_auth_plugins")


def name_of(token: Token) -> str:
    """Return how a token is called in the log."""
    return f"token {digest(token.access_token)}"


def requesting(client: OAuthClient, reason: str, token: Token | None, at: Instant) -> None:
    """A token is going to be requested.

    Args:
        client: whose token it is.
        reason: as in `TokenMinted.reason`.
        token: the one that is to be replaced, if there is one.
        at: this moment.
    """
    name = "the last token" if token is None else name_of(token)
    why = {
        "cold": "there is none yet",
        "due": f"{name} is due for renewal: it expires in {token.remaining(at) if token else 0:.0f} s",
        "expired": f"{name} has expired",
        "rejected": f"the API rejected {name} (401)",
        "invalidated": "invalidate() dropped the last one",
    }[reason]
    logger.debug("%s: requesting a token from %s (%s): %s", client.name, client.host, reason, why)


def minted(client: OAuthClient, reason: str, token: Token, requests: int, seconds: float) -> None:
    """The gateway issued a token."""
    text = "%s: got %s (%s) after %d token request%s and %.3f s; it is valid for %g s"
    plural = "" if requests == 1 else "s"
    logger.debug(text, client.name, name_of(token), reason, requests, plural, seconds, token.expires_in)


def rotated(client: OAuthClient) -> None:
    """The callable returned another client secret than before."""
    logger.debug("%s: client_secret was rotated; requesting a token with the new one", client.name)


def failed(error: Exception, token: Token | None, at: Instant, pause: float) -> None:
    """A token request failed, after its retries.

    Args:
        error: what callers without a valid token get.
        token: the valid token.
        at: this moment.
        pause: seconds until the next attempt.
    """
    if token is None:
        meanwhile = "there is no valid token, so calls fail until then"
    else:
        meanwhile = f"{name_of(token)} is served meanwhile; it expires in {token.remaining(at):.0f} s"
    logger.warning("%s; the next attempt is possible in %.1f s; %s", error, pause, meanwhile)


def waiting(provider: str, *, has_token: bool) -> None:
    """Another caller has requested a token already."""
    what = "renews the token" if has_token else "requests a token"
    logger.debug("%s: another caller %s; waiting for its result", provider, what)


def served(provider: str, token: Token, at: Instant, pause: float) -> None:
    """A caller gets a token that is due for renewal."""
    if not logger.isEnabledFor(logging.DEBUG):
        return  # many calls come here while a gateway is down
    why = f"the next renewal is possible in {pause:.1f} s" if pause else "its renewal is under way, or has just failed"
    logger.debug("%s: serving %s, which expires in %.0f s: %s", provider, name_of(token), token.remaining(at), why)


def rejected(provider: str, token: Token, at: Instant, refusal: str | None, pause: float, other: Token | None) -> None:
    """The API answered 401.

    Args:
        provider: the provider's name.
        token: the rejected token.
        at: this moment.
        refusal: as in `TokenRejected.reason`.
        pause: seconds until a token is requested because of a 401 again.
        other: a valid token that came meanwhile.
    """
    successor = "a new token" if other is None else f"{name_of(other)}, which came meanwhile"
    what = {
        None: f"the request is sent again with {successor}",
        "body": "the 401 is returned, because the request cannot be sent again. Give it a body of bytes, not a stream",
        "back-off": f"the 401 is returned, because new tokens did not help. The next one is requested in {pause:.0f} s",
        "rate limit": f"the 401 is returned, because no token request may be sent for {pause:.0f} s",
    }[refusal]
    text = "%s: the API rejected %s (401), %.0f s after it was issued; %s"
    logger.info(text, provider, name_of(token), token.age(at), what)


def replayed(provider: str, token: Token, status_code: int, seconds: float) -> None:
    """The API answered the request that was sent again."""
    text = "%s: the request was sent again with %s; the API answered %d, %.3f s after the 401"
    logger.debug(text, provider, name_of(token), status_code, seconds)


def still_rejected(provider: str, token: Token, pause: float) -> None:
    """The API rejected the new token, too."""
    logger.info(
        "%s: the API rejected the new %s, too, so new tokens do not help; 401s are returned for %.0f s."
        " Check the account's permissions and the path",
        provider,
        name_of(token),
        pause,
    )
