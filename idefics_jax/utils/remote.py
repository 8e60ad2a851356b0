"""Fetching http and https addresses that others may have written: from public addresses only, within set limits.

By hand on `http.client`, because no common library connects to the very address that was checked: a name that is
resolved twice can be public for the check and private for the connection.
"""

import io
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

SECONDS = 10.0  # of a whole download, redirects included
MAX_BYTES = 256 * 2**20
MAX_REDIRECTS = 5
SAFE = "/%:;@&=+$,!~*'()-._"  # in paths
PIECE = 2**16  # bytes
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses inside IPv6
GLOBAL = ipaddress.ip_network("2000::/3")  # all of IPv6 that is routed
CLOUD = {ipaddress.ip_address("168.63.129.16")}  # Azure's host, which a public address names

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class RemoteError(OSError):
    """An address that is not fetched, or did not give what was asked; one sentence that begins with the address."""


def is_public(address: Address) -> bool:
    """Return True for an address of the public internet.

    Private, loopback, link-local, shared (carrier-grade NAT), multicast and reserved addresses are not, nor are IPv6
    addresses that lead to an IPv4 address of these kinds (mapped, 6to4, NAT64).
    """
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(inside)
        return address in GLOBAL and address.is_global
    return address.is_global and not address.is_multicast and address not in CLOUD


def fetch(
    url: str,
    *,
    name: str | None = None,
    seconds: float = SECONDS,
    limit: int = MAX_BYTES,
    allowed: Callable[[Address], bool] = is_public,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """Fetch the content of an http or https URL.

    Every address that the host's name stands for must be allowed, and the connection goes to one of those that were
    checked, again for each redirect. Proxies of the environment are not used, and no cookies or credentials are sent.

    Args:
        name: the URL in errors; default: the URL itself.
        seconds: limit of everything together, the resolution of names and all redirects included.
        limit: most bytes of the content.
        allowed: decides which addresses may be connected to.
        tls: default: the system's certificates.

    Raises:
        RemoteError: the URL cannot be fetched, is not allowed, or is too large or too slow.
    """
    first, deadline = name or url, time.monotonic() + seconds
    try:
        for _ in range(MAX_REDIRECTS + 1):
            parts = _parts(url)
            response = _request(parts, _resolve(parts, allowed, deadline), deadline, tls)
            with response:
                target = response.getheader("Location")
                if response.status not in (301, 302, 303, 307, 308) or target is None:
                    return _content(response, limit)
            url = urljoin(url, target)
            if parts.scheme == "https" and urlsplit(url).scheme != "https":
                raise _Refusal("redirects from https to an address without encryption, which is not followed")
        raise _Refusal(f"redirects more than {MAX_REDIRECTS} times")
    except _Refusal as error:
        raise RemoteError(f"{first} {error}.") from error
    except TimeoutError as error:
        raise RemoteError(f"{first} was not read within {seconds:g} seconds.") from error
    except HTTPException as error:
        raise RemoteError(f"{first} did not answer as a web server does ({type(error).__name__}).") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RemoteError(f"{first} could not be read: {reason}.") from error


class _Refusal(Exception):
    """The end of a sentence that begins with the URL."""


def _parts(url: str) -> SplitResult:
    """The parts of a URL, its host in ASCII."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        host = (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii").decode()
    except ValueError as error:
        raise _Refusal(f"is not an address that can be fetched ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise _Refusal(f"leads to a {parts.scheme or 'relative'} address; only http and https are fetched")
    if not host:
        raise _Refusal("names no host")
    if parts.username is not None or parts.password is not None:
        raise _Refusal("holds a user name or password, which is not sent; download the file first")
    return parts._replace(netloc=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _resolve(parts: SplitResult, allowed: Callable[[Address], bool], deadline: float) -> list[tuple[Any, ...]]:
    """The addresses of a host as `socket.getaddrinfo` gives them, all of which are allowed."""
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=look_up, daemon=True)  # resolvers have no limit of time that could be set
    thread.start()
    thread.join(_left(deadline))
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise _Refusal(f"could not be read: the host {parts.hostname} is not found") from found[0]
    for *_, place in found[0]:
        if not allowed(ipaddress.ip_address(place[0])):
            raise _Refusal(
                f"is not fetched: {parts.hostname} is {place[0]}, which is no public address; give the image as a file"
            )
    return found[0]


def _request(
    parts: SplitResult, places: list[tuple[Any, ...]], deadline: float, tls: ssl.SSLContext | None
) -> HTTPResponse:
    """The response to GET, its body not read yet."""
    connection = HTTPConnection(parts.hostname or "", parts.port)
    raw = _connect(places, deadline)
    try:
        if parts.scheme == "https":
            raw.settimeout(_left(deadline))
            raw = (tls or _system_tls()).wrap_socket(raw, server_hostname=parts.hostname)
        connection.sock = _Timed(raw, deadline)  # type: ignore[assignment] - all that HTTPConnection needs of a socket
        path = quote(parts.path or "/", safe=SAFE) + ("?" + quote(parts.query, safe=SAFE + "?") if parts.query else "")
        default = {"http": 80, "https": 443}[parts.scheme]
        host = parts.netloc.removesuffix(f":{default}")
        headers = {"Host": host, "User-Agent": "idefics-jax", "Accept": "image/*, */*", "Connection": "close"}
        connection.request("GET", path, headers=headers)
        return connection.getresponse()
    except BaseException:
        raw.close()
        raise


def _connect(places: list[tuple[Any, ...]], deadline: float) -> socket.socket:
    """A connection to the first of these places that answers."""
    problem: OSError | None = None
    for number, (family, kind, protocol, _, place) in enumerate(places):
        # A place that does not answer leaves time for the others.
        share = _left(deadline) / (len(places) - number)
        try:
            raw = socket.socket(family, kind, protocol)
        except OSError as error:
            problem = error
            continue
        try:
            raw.settimeout(share)
            raw.connect(place)
            return raw
        except OSError as error:
            raw.close()
            problem = error
    raise problem or OSError("its host has no address")


def _content(response: HTTPResponse, limit: int) -> bytes:
    if response.status != 200:
        raise _Refusal(f"answered {response.status} {response.reason[:100]}".rstrip() + " instead of an image")
    content = bytearray()
    while piece := response.read1(PIECE):
        content += piece
        if len(content) > limit:
            raise _Refusal(f"has more than {limit:,} bytes; download and shrink it first")
    if response.length:
        raise _Refusal(f"ended {response.length:,} bytes too early; try again")
    return bytes(content)


@cache
def _system_tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # reads all certificates: once


def _left(deadline: float) -> float:
    """Seconds that are left, more than 0."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Timed:
    """A socket for `http.client` whose every operation ends by one deadline, however slowly bytes come."""

    def __init__(self, raw: socket.socket, deadline: float):
        self._raw, self._deadline = raw, deadline

    def sendall(self, data: bytes) -> None:
        self._raw.settimeout(_left(self._deadline))
        self._raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._raw, self._deadline))

    def close(self) -> None:
        """Does nothing: the response reads on, and closes the connection."""


class _TimedReader(io.RawIOBase):
    def __init__(self, raw: socket.socket, deadline: float):
        self._raw, self._deadline = raw, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._raw.settimeout(_left(self._deadline))
        return self._raw.recv_into(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
