"""Which network interface leads to the head node: gloo must be told where a host's name leads elsewhere."""

import fcntl
import socket
import struct
from collections.abc import MutableMapping

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface
_NAME_BYTES = 15
_ADDRESS = slice(20, 24)


def tell_gloo(environ: MutableMapping[str, str]) -> None:
    """Set gloo's interface where nobody has: gloo itself takes what this host's name leads to.

    That is the loopback on hosts whose /etc/hosts says so, and another network than the head node's on many
    with several. NCCL looks at the interfaces themselves.
    """
    head = environ.get("MASTER_ADDR")
    if head is None or "GLOO_SOCKET_IFNAME" in environ:
        return
    found = find_interface(head)
    if found is not None:
        environ["GLOO_SOCKET_IFNAME"] = found


def find_interface(head: str, port: int = 9) -> str | None:
    """Name the interface that bears the address by which this host reaches ``head``.

    On the head node itself this is the interface that bears its own address, not the loopback: the route to
    one's own address goes through the loopback, but the address that is used is the interface's. Nothing is
    sent: connecting a datagram socket only asks the kernel for the route.

    Args:
        head: Host name or IPv4 address.
        port: Any.

    Returns:
        None where the name leads nowhere, over IPv6, or to this host under a loopback name.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((head, port))
        except OSError:
            return None
        own = probe.getsockname()[0]
        if own.startswith("127."):
            return None
        for _, name in socket.if_nameindex():
            if _address_of(probe, name) == own:
                return name
    return None


def _address_of(opened: socket.socket, interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:_NAME_BYTES])
    try:
        return socket.inet_ntoa(fcntl.ioctl(opened.fileno(), _SIOCGIFADDR, request)[_ADDRESS])
    except OSError:  # it has no IPv4 address
        return None
