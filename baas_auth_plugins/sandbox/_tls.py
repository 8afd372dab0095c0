"""A certificate authority of the sandbox's own, and the certificates of its server and its client."""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Authority"]

_LIFE = timedelta(days=30)
_SKEW = timedelta(days=1)  # a container's clock may be behind
_PEM = serialization.Encoding.PEM


class Authority:
    """Issues certificates for one sandbox, and keeps them in a directory that only this user can read.

    Args:
        names: host names and addresses that the server's certificate is for.

    Attributes:
        ca_file: path of the authority's certificate (PEM).
        client_cert: paths of a client certificate and its key (PEM).
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="baas-auth-sandbox-")
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "baas-auth sandbox CA")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        self._certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = self._write("ca.pem", self._certificate.public_bytes(_PEM))
        self._server = self._issue("server", names, ExtendedKeyUsageOID.SERVER_AUTH)
        self.client_cert = self._issue("client", (), ExtendedKeyUsageOID.CLIENT_AUTH)

    def server_context(self, *, client_certificate: bool) -> ssl.SSLContext:
        """Return the context of a server, which may require a client certificate of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._server)
        if client_certificate:
            context.load_verify_locations(self.ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def close(self) -> None:
        """Delete the files."""
        self._directory.cleanup()

    def _builder(self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + _LIFE)
        )

    def _issue(self, name: str, hosts: Iterable[str], usage: x509.ObjectIdentifier) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"baas-auth sandbox {name}")])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = self._builder(subject, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(authority, critical=False)
        if alternatives := [_general_name(host) for host in hosts]:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return (
            self._write(f"{name}.pem", certificate.public_bytes(_PEM)),
            self._write(f"{name}.key", private),
        )

    def _write(self, name: str, content: bytes) -> str:
        path = Path(self._directory.name, name)
        path.write_bytes(content)
        return str(path)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)
