"""How a replica is reached: in clear on this machine's loopback, elsewhere over TLS with one certificate.

The node of a replica makes a certificate for it alone and announces it; whoever speaks to the replica
trusts that one and no authority (docs/decisions/101-replicas-on-other-nodes.md).
"""

import ssl

# What nobody else reaches. The rest of 127.0.0.0/8 is treated as the network, so that TLS can be tried here.
_HERE = frozenset({"127.0.0.1", "::1", "localhost"})


def is_in_clear(host: str) -> bool:
    """Whether a replica at this host, `[…]` around an IPv6 address or not, answers in clear."""
    return host.strip("[]") in _HERE


def url_of(http_address: str) -> str:
    """The URL of `pb.Replica.http_address`, whose first part is `host:port`."""
    place = http_address.partition(",")[0].strip()
    return f"{'http' if is_in_clear(place.rpartition(':')[0]) else 'https'}://{place}"


def context_of(certificate: str) -> ssl.SSLContext:
    """Trusts this certificate (PEM) alone, under whatever name; without one, nobody.

    Raises `ssl.SSLError`, an `OSError`, for what is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    if certificate:
        try:
            context.load_verify_locations(cadata=certificate)
        except (TypeError, ValueError) as error:
            raise ssl.SSLError(str(error)) from error
    return context
