"""Certificates of one sandbox cluster: its CA, the API server's certificate, client certificates, kubeconfigs.

A client certificate is an identity: common name = user, organisations = groups, as in Kubernetes ("Authenticating",
X.509 client certificates). Keys are P-256: they are made in milliseconds.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = dt.timedelta(days=365)


def _write_private(path: Path, data: bytes) -> None:
    """Create or replace a file that only its owner can read, from its first byte on."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
    temporary.replace(path)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True)
class Credential:
    """A certificate with its key, both PEM."""

    certificate: bytes
    key: bytes


class Pki:
    """The cluster's certificate authority, kept under ``directory`` (mode 0700) and reused if it exists."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ca_path = directory / "ca.crt"
        self._ca_key_path = directory / "ca.key"
        if self._ca_path.exists() and self._ca_key_path.exists():
            loaded = serialization.load_pem_private_key(self._ca_key_path.read_bytes(), None)
            if not isinstance(loaded, ec.EllipticCurvePrivateKey):
                raise ValueError(f"{self._ca_key_path} is not an EC key; delete {directory} to make a new authority")
            self._ca_key = loaded
            self._ca = x509.load_pem_x509_certificate(self._ca_path.read_bytes())
        else:
            self._ca_key = ec.generate_private_key(ec.SECP256R1())
            self._ca = self._self_signed()
            _write_private(self._ca_key_path, _pem_key(self._ca_key))
            _write_private(self._ca_path, self.ca_pem)

    @property
    def ca_pem(self) -> bytes:
        return self._ca.public_bytes(serialization.Encoding.PEM)

    @property
    def ca_path(self) -> Path:
        """File with the CA certificate (PEM)."""
        return self._ca_path

    @property
    def ca_data(self) -> str:
        """The CA certificate as EKS hands it out in ``certificateAuthority.data``: base64 of the PEM."""
        return base64.b64encode(self.ca_pem).decode()

    def _self_signed(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
        public = self._ca_key.public_key()
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, False, False, False, True, True, False, False),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._ca_key, hashes.SHA256())
        )

    def _issue(self, subject: x509.Name, usage: x509.ObjectIdentifier, names: list[x509.GeneralName]) -> Credential:
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(True, False, True, False, False, False, False, False, False),
                critical=True,
            )
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._ca_key, hashes.SHA256())
        return Credential(certificate.public_bytes(serialization.Encoding.PEM), _pem_key(key))

    def server(self, names: tuple[str, ...] = ()) -> Credential:
        """A server certificate for localhost, 127.0.0.1, ::1 and ``names``."""
        alternatives: list[x509.GeneralName] = []
        for name in dict.fromkeys(("localhost", "127.0.0.1", "::1", "kubernetes.default.svc", *names)):
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
        return self._issue(subject, ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def client(self, user: str, groups: tuple[str, ...] = ()) -> Credential:
        """A client certificate: CN = user, one O per group."""
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
            + [x509.NameAttribute(NameOID.COMMON_NAME, user)]
        )
        return self._issue(subject, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def server_context(self) -> ssl.SSLContext:
        """TLS for the API server: client certificates of this CA are requested, not required."""
        credential = self.server()
        certificate, key = self.directory / "server.crt", self.directory / "server.key"
        _write_private(key, credential.key)
        _write_private(certificate, credential.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=self.ca_pem.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def write_kubeconfig(
        self,
        path: Path,
        url: str,
        user: str = "kubernetes-admin",
        groups: tuple[str, ...] = ("system:masters",),
        *,
        token: str | None = None,
        cluster: str = "sandbox",
    ) -> Path:
        """
        A kubeconfig (mode 0600) for ``user``: with a fresh client certificate, or with ``token`` if one is given.

        :param path: file to write; its folder is made if absent.
        :param url: of the API server.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if token is not None:
            auth = {"token": token}
        else:
            credential = self.client(user, groups)
            auth = {
                "client-certificate-data": base64.b64encode(credential.certificate).decode(),
                "client-key-data": base64.b64encode(credential.key).decode(),
            }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": cluster, "cluster": {"server": url, "certificate-authority-data": self.ca_data}}],
            "users": [{"name": user, "user": auth}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
            "current-context": cluster,
        }
        _write_private(path, json.dumps(document, indent=1).encode())
        return path
