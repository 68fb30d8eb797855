"""Certificates for tests: an authority that signs what it is asked to."""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)
_SIGNING = {"key_cert_sign", "crl_sign"}
_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
SIGNS = x509.KeyUsage(**{use: use in _SIGNING for use in _USES})


class Authority:
    """Signs certificates into a directory. One that is not `strict` leaves out what only Python 3.13 and newer miss."""

    def __init__(self, directory, name="test authority", *, strict=True):
        self._strict = strict
        self._directory = directory
        self._numbers = itertools.count(1)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = str(directory / f"{name.replace(' ', '-')}.pem")
        certificate = self._sign(self._name, self._key, None, authority=True)
        (directory / self.file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, host, *, starts=-DAY, ends=DAY, password=None):
        """Return the paths of a certificate for `host` and of its key, which no other one has."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._sign(subject, key, host, starts=starts, ends=ends)
        secrecy = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        stem = f"{Path(self.file).stem}-{next(self._numbers)}"
        files = self._directory / f"{stem}.crt", self._directory / f"{stem}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secrecy))
        return str(files[0]), str(files[1])

    def _sign(self, subject, key, host, *, starts=-DAY, ends=DAY, authority=False):
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if authority:
            builder = builder.add_extension(SIGNS, critical=True)
        if self._strict:
            identifiers = (
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
            )
            for identifier in identifiers:
                builder = builder.add_extension(identifier, critical=False)
        if host:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder.sign(self._key, hashes.SHA256())
