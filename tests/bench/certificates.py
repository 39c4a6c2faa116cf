"""Certificates of an authority made for the moment, for measurements without Vault."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stellwerk_platform.identity import Certificate, Identity
from stellwerk_platform.vault import Vault

PEM = serialization.Encoding.PEM


def identity(name: str) -> Identity:
    """One that signs itself, of the kind that Vault issues (P-256); its holder trusts itself alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name}.stellwerk")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{name}.stellwerk")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    ).public_bytes(PEM)
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return of(name, Certificate(made, private, made, now.timestamp() + 3_600))


def of(name: str, certificate: Certificate) -> Identity:
    """The identity that shows this certificate; nobody renews it."""
    return Identity(Vault("http://127.0.0.1:9", name, ""), name, 3_600, certificate)
