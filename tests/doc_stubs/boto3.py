"""A stand-in for boto3: one secret in the Secrets Manager."""

from __future__ import annotations


class _Manager:
    def get_secret_value(self, *, SecretId: str) -> dict[str, str]:  # noqa: N803  # the name is AWS's
        assert SecretId == "prod/axia"
        return {"Name": SecretId, "SecretString": "your-client-secret"}


def client(service: str) -> _Manager:
    """Return a client of the Secrets Manager."""
    assert service == "secretsmanager"
    return _Manager()
