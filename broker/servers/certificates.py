"""A site's own certificate authority, and the certificates that it signs: the broker's and one for each client.

Owns their form and their lifetimes. Doesn't know files or accounts. A client's certificate proves only that the site
issued it; who the client is says its user name, so that a deleted account can't go on with its certificate.

Invariant: a client's certificate can't pass as the broker's, and the other way round (extended key usage).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.protocol.errors import BadFile

CA_DAYS = 3653  # ten years: a new CA means a visit to each box
CERTIFICATE_DAYS = 1096  # three years
CLOCKS_DIFFER = timedelta(days=1)  # certificates begin so much earlier: the clock of a box may be late
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)  # before this program was written: a clock that says so isn't set
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")  # names of each broker, beside its hosts


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes

    @property
    def ends(self) -> datetime:
        """The time of its end."""
        return ends_of(self.certificate)


def make_authority(name: str, now: datetime) -> Certificate:
    """A new certificate authority, which signs itself.

    Raises:
        BadFile: this machine's clock isn't set.
    """
    _require_clock(now)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key.public_key(), now, CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Certificate(builder.sign(key, SHA256()).public_bytes(Encoding.PEM), _pem(key))


def issue(authority: Certificate, name: str, now: datetime, *, hosts: Sequence[str] = ()) -> Certificate:
    """A new certificate for a client, or with ``hosts`` for a broker, which has these names or addresses.

    It ends with its authority at the latest.

    Raises:
        BadFile: this machine's clock isn't set, or the authority has ended.
    """
    _require_clock(now)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    days = min(CERTIFICATE_DAYS, (issuer.not_valid_after_utc - now).days)
    if days <= 0:
        problem = f"the site's authority ended on {day(issuer.not_valid_after_utc)}"
        raise BadFile(file="ca.crt", problem=problem, fix="set up the site again with `s2m3 broker init`")
    signing_key = load_pem_private_key(authority.key, None)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(name), issuer.subject, key.public_key(), now, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    known = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())  # type: ignore[arg-type]
    builder = builder.add_extension(known, critical=False)
    if hosts:
        names = [_host(each) for each in dict.fromkeys((*hosts, *THIS_MACHINE))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(signing_key, SHA256())  # type: ignore[arg-type]
    return Certificate(signed.public_bytes(Encoding.PEM), _pem(key))


def ends_of(pem: bytes) -> datetime:
    """The end of the certificates in a PEM file: that of the first to end.

    Raises:
        ValueError: it has no certificate.
    """
    return min(each.not_valid_after_utc for each in x509.load_pem_x509_certificates(pem))


def day(time: datetime) -> str:
    """A day as people read it."""
    return time.strftime("%Y-%m-%d")


def _require_clock(now: datetime) -> None:
    if now < EARLIEST:
        problem = f"says {now:%Y-%m-%d %H:%M} (UTC), and certificates begin with the day on which they are made"
        raise BadFile(file="this machine's clock", problem=problem, fix="set the clock first, for instance by NTP")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - CLOCKS_DIFFER).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
