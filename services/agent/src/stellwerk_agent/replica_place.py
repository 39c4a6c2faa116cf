"""Where a replica listens: ports of this node, and beyond loopback a certificate of its own."""

import ipaddress
import json
import random
import socket
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stellwerk_agent.config import Settings
from stellwerk_agent.failure import StepFailed
from stellwerk_agent.files import write_atomic
from stellwerk_agent.folder import AllocationFolder
from stellwerk_platform import replica_tls

_NOTE = "ports"
_CERTIFICATE, _KEY = "certificate.pem", "key.pem"
# Of Linux, less the zero at the end.
_MAX_SOCKET_PATH_BYTES = 107
# It ends with the replica; RFC 5280, 4.1.2.5, has this date for what has no end of its own.
_NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
# Clocks of two nodes differ.
_EARLIER = timedelta(days=1)


@dataclass(frozen=True)
class Place:
    """What is announced of a replica; the certificate is PEM, empty where it answers in clear."""

    http_address: str
    grpc_address: str
    certificate: str = ""

    @property
    def url(self) -> str:
        """Where HTTP is answered."""
        return replica_tls.url_of(self.http_address)

    def variables(self, folder: AllocationFolder) -> dict[str, str]:
        """What tells the scoring server."""
        listen = {
            "STELLWERK_SCORER_HTTP_LISTEN": self.http_address,
            "STELLWERK_SCORER_GRPC_LISTEN": self.grpc_address,
        }
        if not self.certificate:
            return listen
        return {
            **listen,
            "STELLWERK_SCORER_CERTIFICATE": str(folder.path / _CERTIFICATE),
            "STELLWERK_SCORER_KEY": str(folder.path / _KEY),
        }


def noted(folder: AllocationFolder) -> Place | None:
    """The place of a replica that has one."""
    found = folder.noted(_NOTE)
    return None if found is None else Place(**found)


def choose(folder: AllocationFolder, settings: Settings) -> Place:
    """A place, which is noted before anything listens there; raises `StepFailed` without free ports."""
    host = settings.agent_replica_host
    http, grpc = free_ports(host, settings.replica_ports, _taken(folder.path.parent))
    shown = f"[{host}]" if ":" in host else host
    if replica_tls.is_in_clear(host):
        place = Place(f"{shown}:{http}{_socket(folder.path)}", f"{shown}:{grpc}")
    else:
        place = Place(f"{shown}:{http}", f"{shown}:{grpc}", _keep(folder, *certify(host)))
    folder.note(_NOTE, asdict(place))
    return place


def free_ports(
    host: str, allowed: Sequence[int] = (), taken: Collection[int] = frozenset()
) -> tuple[int, int]:
    """Two ports of an address or name of this node that nobody listens on now; `allowed` empty: any.

    Raises `StepFailed` when there are none.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(allowed, len(allowed)) if allowed else (0, 0):
            if port in taken:
                continue
            try:
                server = held.enter_context(socket.create_server((host, port), family=family))
            except OSError:
                continue
            found.append(int(server.getsockname()[1]))
            if len(found) == 2:
                return found[0], found[1]
    raise StepFailed(
        "NO_FREE_PORT",
        f"{host} has no two free ports for another replica.",
        "Widen STELLWERK_AGENT_REPLICA_PORTS on the node, and what lets the gateway in, or add a node.",
    )


def _taken(allocations: Path) -> set[int]:
    """Ports that replicas of this agent have, whether or not they listen yet."""
    places = []
    for note in allocations.glob(f"[!.]*/{_NOTE}.json"):
        # What has ended may be discarded meanwhile.
        with suppress(FileNotFoundError):
            places.append(Place(**json.loads(note.read_bytes())))
    addresses = [address for place in places for address in (place.http_address, place.grpc_address)]
    return {int(address.partition(",")[0].rpartition(":")[2]) for address in addresses}


def _socket(folder: Path) -> str:
    """A second address for who is on this node too, cheaper than loopback; none where it is too long."""
    path = folder / "http.sock"
    return f",unix:{path}" if len(str(path).encode()) <= _MAX_SOCKET_PATH_BYTES else ""


def _keep(folder: AllocationFolder, key: bytes, certificate: bytes) -> str:
    write_atomic(folder.path / _KEY, key)
    write_atomic(folder.path / _CERTIFICATE, certificate)
    return certificate.decode()


def certify(host: str) -> tuple[bytes, bytes]:
    """A new key, and the certificate that says that it is the replica's at this address; both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Stellwerk replica")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _EARLIER)
        .not_valid_after(_NO_END)
        .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret, certificate.public_bytes(pem)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
