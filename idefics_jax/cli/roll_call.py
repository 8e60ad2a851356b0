"""Roll call of the processes of several hosts, before JAX connects them: it aborts those that share a number."""

import secrets
import select
import socket
import time
from contextlib import ExitStack, suppress
from typing import NamedTuple

GREETING, GO = "idefics-jax", "go"
ANSWERING = 5.0  # seconds for a line of whoever has connected
LONGEST = 500  # bytes of one


class Process(NamedTuple):
    """This process among the others.

    Attributes:
        coordinator: HOST:PORT of process 0.
        count: number of processes.
        index: number of this one.
        names: of the three options.
    """

    coordinator: str
    count: int
    index: int
    names: tuple[str, str, str]


def serve(process: Process) -> socket.socket:
    """Open the coordinator's port, where process 0 awaits the others.

    Raises:
        OSError: the port is not free.
        ValueError: another process 0 awaits the others there.
    """
    port, dual = int(process.coordinator.rpartition(":")[2]), socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual, backlog=1024
        )
    except OSError as error:
        with suppress(OSError), _announce(process) as other:
            if said := _line(other):
                raise ValueError(said) from error
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise OSError(
            f"{process.names[0]} {process.coordinator}: port {port} is not free here ({reason}); choose another."
        ) from error


def call_roll(server: socket.socket, process: Process) -> None:
    """Await every other process, without end, and let all go on.

    Raises:
        ValueError: two processes have one number, or not all have the same count; those that came are told, too.
    """
    here: dict[int, socket.socket] = {}
    token = secrets.token_hex(8)
    with server, ExitStack() as stack:
        own = None
        with suppress(OSError):  # what awaits the others at that address may be another host's process 0
            own = stack.enter_context(_announce(process, token))
        while len(here) < process.count - 1:
            ready, _, _ = select.select([server, *([own] if own else [])], [], [], 1.0)
            here = {index: connection for index, connection in here.items() if _is_open(connection)}
            if own in ready:
                assert own is not None
                if said := _line(own):
                    raise ValueError(said)
                own = None
            if server not in ready:
                continue
            connection = stack.enter_context(server.accept()[0])
            index, count, its_token = _announced(connection)
            if its_token in ("", token):  # of something else, or of this process
                connection.close()
                continue
            problem = _problem(process, index, count, here)
            if problem:
                for each in (connection, *here.values()):
                    _say(each, problem)
                raise ValueError(problem)
            here[index] = connection
        for connection in here.values():
            _say(connection, GO)


def answer_roll(process: Process) -> None:
    """Announce this process to process 0, without end, until all may go on.

    Raises:
        ValueError: process 0 says what is wrong.
    """
    while True:
        said = ""
        with suppress(OSError), _announce(process) as connection:  # process 0 may not have begun yet, or begin again
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            said = _line(connection)
        if said == GO:
            return
        if said:
            raise ValueError(said)
        time.sleep(0.5)


def _problem(process: Process, index: int, count: int, here: dict[int, socket.socket]) -> str:
    """Return what is wrong with a process that has come, if anything is."""
    _, how_many, which = process.names
    if count != process.count:
        return (
            f"Process {index} was started with {how_many} {count}, and process 0 with {process.count}; give one number."
        )
    if index == 0 or index in here:
        return (
            f"Two processes were started with {which} {index}; "
            f"give each of the {count} a number of its own, from 0 to {count - 1}."
        )
    return ""


def _announce(process: Process, token: str | None = None) -> socket.socket:
    """Connect to the coordinator and say which process this is."""
    host, _, port = process.coordinator.rpartition(":")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERING)
    _say(connection, f"{process.index} {process.count} {token or secrets.token_hex(8)}")
    return connection


def _announced(connection: socket.socket) -> tuple[int, int, str]:
    """Read what `_announce` says; the token is empty if it is something else."""
    connection.settimeout(ANSWERING)
    parts = _line(connection).split()
    if len(parts) == 3 and all(part.isdecimal() and len(part) < 10 for part in parts[:2]):
        return int(parts[0]), int(parts[1]), parts[2]
    return 0, 0, ""


def _say(connection: socket.socket, text: str) -> None:
    with suppress(OSError):
        connection.sendall(f"{GREETING} {text}\n".encode())


def _line(connection: socket.socket) -> str:
    """Read a line that another process says; empty if nothing comes, or something else."""
    with suppress(OSError), connection.makefile("rb") as file:
        greeting, _, said = file.readline(LONGEST).decode(errors="replace").strip().partition(" ")
        return said if greeting == GREETING else ""
    return ""


def _is_open(connection: socket.socket) -> bool:
    """Return False if the other side has gone."""
    try:
        connection.setblocking(False)
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(ANSWERING)
