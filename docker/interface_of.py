"""Print the network interface that holds the address of a host name.

A container in several networks has its interfaces in an order that differs between versions of Docker, so that which of
them leads where is asked and not assumed.
"""

import fcntl
import socket
import struct
import sys

_SIOCGIFADDR = 0x8915  # linux/sockios.h


def interface_of(name: str) -> str:
    """Raises OSError where the name has no address, ValueError where no interface has it."""
    wanted = socket.gethostbyname(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, interface in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", interface.encode()))
            except OSError:  # no address
                continue
            if socket.inet_ntoa(answer[20:24]) == wanted:
                return interface
    raise ValueError(f"no interface of this host has the address of {name}, {wanted}: is it in that network?")


if __name__ == "__main__":
    try:
        print(interface_of(sys.argv[1]))
    except (OSError, ValueError) as error:
        sys.exit(f"docker/interface_of.py: {sys.argv[1]}: {error}")
