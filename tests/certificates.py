"""Certificates for the tests: an authority that signs what a test asks for, valid or not."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Files:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path

    def settings(self, ca: Path) -> tuple[str, ...]:
        """The lines of a Mosquitto's configuration."""
        return f"cafile {ca}", f"certfile {self.cert}", f"keyfile {self.key}"


@dataclass
class Authority:
    """A certificate authority with its files in a folder."""

    folder: Path
    name: str = "test authority"
    days: tuple[float, float] = (-1, 10)  # in which its own certificate is valid
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "ca.pem"
        self.file.write_bytes(_pem(self._sign(self.name, self._key.public_key(), days=self.days, hosts=(), is_ca=True)))

    def issue(
        self,
        name: str,
        *hosts: str,
        days: tuple[float, float] = (-1, 10),
        self_signed: bool = False,
        passphrase: bytes | None = None,
        rsa_bits: int | None = None,
    ) -> Files:
        """A certificate for these hosts, valid from and until so many days from now; of an EC key, or of an RSA key."""
        own = ec.generate_private_key(ec.SECP256R1())
        key = rsa.generate_private_key(65_537, rsa_bits) if rsa_bits else own
        signer = Authority(self.folder / name, name, _key=own) if self_signed else self
        certificate = signer._sign(name, key.public_key(), days=days, hosts=hosts, is_ca=False)
        files = Files(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        files.cert.write_bytes(_pem(certificate))
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        files.key.touch(0o600)
        files.key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return files

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        *,
        days: tuple[float, float],
        hosts: tuple[str, ...],
        is_ca: bool,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        own = self._key.public_key()
        made = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self.name))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own), critical=False)
        )
        if hosts:
            made = made.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        return made.sign(self._key, hashes.SHA256())


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
