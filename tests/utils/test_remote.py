"""Addresses are fetched from public hosts only, checked again at every redirect, within limits of size and time."""

import contextlib
import http.server
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from functools import partial

import pytest

from idefics_jax.utils.remote import RemoteError, fetch, is_public

anywhere = partial(fetch, allowed=lambda address: True)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]
)
def test_public_addresses(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("100.100.100.200", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "168.63.129.16"),
        *("::", "::1", "fe80::1", "fe80::1%lo", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254"),
        *("64:ff9b:1::1", "2002:7f00:1::1", "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "5f00::1"),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


class Handler(http.server.BaseHTTPRequestHandler):
    """A server with the faults of servers."""

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        name, _, rest = self.path[1:].partition("/")
        if name == "redirect":
            self.send_response(302)
            self.send_header("Location", {"loop": self.path, "here": "/content"}.get(rest, rest))
            self.end_headers()
        elif name == "missing":
            self.send_error(404)
        elif name == "drip":  # a byte at a time, for ever
            self.send_response(200)
            self.end_headers()
            while not self.server.stop.wait(0.02):
                self.wfile.write(b"x")
        elif name == "headers":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            while not self.server.stop.wait(0.02):
                self.wfile.write(b"x")
        elif name == "silent":
            self.server.stop.wait(5)
        elif name == "garbage":
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n")
        else:
            self.send_response(200)
            if name == "early":
                self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"content")

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            super().handle()


def serve(context: ssl.SSLContext | None = None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.stop, server.seen = threading.Event(), []
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def server():
    yield from serve()


@pytest.fixture(scope="module")
def url(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def refusal(address: str, **arguments) -> str:
    """The one line of the error, after the address."""
    with pytest.raises(RemoteError) as caught:
        anywhere(address, **arguments)
    text = str(caught.value)
    assert text.startswith(address)
    assert "\n" not in text
    return text[len(address) + 1 :]


def test_content_is_fetched(url, server):
    assert anywhere(f"{url}/content") == b"content"
    assert anywhere(f" {url}/redirect/here\n") == b"content"
    assert anywhere(f"{url}/a b/é?q=ü&x=1#part") == b"content"
    path, headers = server.seen[-1]
    assert path == "/a%20b/%C3%A9?q=%C3%BC&x=1"
    assert headers["Host"] == url.removeprefix("http://")
    assert headers["User-Agent"] == "idefics-jax"


def test_loopback_is_refused(url, server):
    server.seen.clear()
    port = server.server_port
    hosts = ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
    for host in hosts:
        with pytest.raises(RemoteError, match=r"is no public address; give the image as a file|host .* is not found"):
            fetch(f"http://{host}:{port}/content")
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1, which is no public address; give the image as a file\.$"):
        fetch(f"{url}/content")
    assert server.seen == []


def test_every_redirect_is_checked(url, server):
    def first_only(address):
        return str(address) == "127.0.0.1"

    address = f"{url}/redirect/http://127.0.0.2:{server.server_port}/content"
    assert "127.0.0.2, which is no public address" in refusal(address, allowed=first_only)
    assert refusal(f"{url}/redirect/loop") == "redirects more than 5 times."
    assert refusal(f"{url}/redirect/file:///etc/passwd") == (
        "leads to a file address; only http and https are fetched."
    )
    assert "user name or password" in refusal(f"{url}/redirect/http://me:secret@127.0.0.1/")


def test_a_name_with_one_private_address_is_refused(url, monkeypatch):
    """A name is looked up once, and every address that it stands for is checked."""
    port = int(url.rpartition(":")[2])
    looked_up = []

    def look_up(host, *_, **__):
        looked_up.append(host)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("8.8.8.8", port)), (*kind, ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(RemoteError, match=r"twice\.example is 127\.0\.0\.1, which is no public address"):
        fetch(f"http://twice.example:{port}/content")
    assert looked_up == ["twice.example"]


@pytest.mark.parametrize("path", ["drip", "headers", "silent"])
def test_the_whole_download_has_a_limit(url, path):
    start = time.monotonic()
    assert refusal(f"{url}/{path}", seconds=0.3) == "was not read within 0.3 seconds."
    assert time.monotonic() - start < 2


def test_answers_that_are_no_content(url):
    assert refusal(f"{url}/missing") == "answered 404 Not Found instead of an image."
    assert refusal(f"{url}/content", limit=6) == "has more than 6 bytes; download and shrink it first."
    assert refusal(f"{url}/drip", limit=6) == "has more than 6 bytes; download and shrink it first."
    assert refusal(f"{url}/early") == "ended 93 bytes too early; try again."
    assert refusal(f"{url}/garbage") == "did not answer as a web server does (BadStatusLine)."


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9/a.png", "could not be read: Connection refused."),
        ("http://user:word@host/a.png", "holds a user name or password, which is not sent; download the file first."),
        ("http://user@host/a.png", "holds a user name or password, which is not sent; download the file first."),
        ("http:///a.png", "names no host."),
        ("http://host:99999/a.png", "is not an address that can be fetched (Port out of range 0-65535)."),
        ("http://[::1/a.png", "is not an address that can be fetched (Invalid IPv6 URL)."),
        ("http://no-such-host.invalid/a.png", "could not be read: the host no-such-host.invalid is not found."),
        (f"http://{'a' * 70}.example/", f"could not be read: the host {'a' * 70}.example is not found."),
        ("http://ü..example/", "is not an address that can be fetched"),
        ("ftp://host/a.png", "leads to a ftp address; only http and https are fetched."),
        ("gopher://host/a.png", "leads to a gopher address; only http and https are fetched."),
    ],
)
def test_addresses_that_are_not_fetched(address, message):
    assert refusal(address).startswith(message)


def test_proxies_of_the_environment_are_not_used(url, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert anywhere(f"{url}/content") == b"content"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout key -out cert -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate")
    return folder


def test_encrypted_addresses_keep_their_name(certificate, url):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    trusted = ssl.create_default_context(cafile=str(certificate / "cert"))
    for server in serve(context):
        address = f"https://localhost:{server.server_port}"
        assert anywhere(f"{address}/content", tls=trusted) == b"content"
        assert "certificate verify failed" in refusal(f"{address}/content").lower()
        other = f"https://127.0.0.1:{server.server_port}/content"  # not the name that the certificate is for
        assert "certificate verify failed" in refusal(other, tls=trusted).lower()
        assert refusal(f"{address}/redirect/{url}/content", tls=trusted) == (
            "redirects from https to an address without encryption, which is not followed."
        )
        assert refusal(f"{address}/drip", tls=trusted, seconds=0.5) == "was not read within 0.5 seconds."
