"""What every task that answers over HTTP needs before it starts: its libraries, and an address. Light to import."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from ipaddress import ip_address

from mvtec_lab.errors import LabError


def require_server(task: str, *libraries: str) -> None:
    """Check that what answers over HTTP is installed.

    Args:
        libraries: what the task needs beside Starlette and uvicorn, by the names of their modules.

    Raises:
        LabError: it is not, with the extra that brings it.
    """
    if any(find_spec(name) is None for name in ("starlette", "uvicorn", *libraries)):
        raise LabError(f'task={task} needs an extra: pip install "mvtec_lab[serve]"')


def listen(host: str, port: int, section: str) -> socket.socket:
    """Return a socket that listens at an address.

    Args:
        section: of the configuration, for error lines: ``serve`` has ``serve.host`` and ``serve.port``.

    Raises:
        LabError: another program does, or the address is none of this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=64)
        # Connections inherit it; asyncio sets it only where a socket names its protocol, which these do not. Without it
        # the second part of each answer waits 40 ms for the acknowledgement of the first: 36 images a second became 80.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        other = f"give another {section}.port, {section}.port={port + 1 if port < 65_535 else 0}, or 0 for any free one"
        raise LabError(
            f"{section}.host={host} {section}.port={port} cannot be used ({error.strerror or error}): {other}"
        ) from error


def is_local(host: str) -> bool:
    """Tell whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def address_of(host: str, port: int) -> str:
    """Return the address as a browser takes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
