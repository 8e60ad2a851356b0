"""Object stores on this machine, served by moto (s3://) and gcp-storage-emulator (gs://), and a network that fails."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.support.train_runs import free_port

BUCKET = "bucket"


@contextmanager
def store(kind: str, log: Path) -> Iterator[int]:
    """The port of a server with a bucket; until it ends, the environment of this process leads there."""
    port = free_port()
    command = {
        "s3": ["moto.server", "-H", "127.0.0.1", "-p", str(port)],
        "gs": ["tests.support.gs_emulator", str(port)],
    }[kind]
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=file, stderr=file)
    with pytest.MonkeyPatch.context() as patch:
        try:
            while not _answers(port):
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            for name, value in environment(kind, port).items():
                patch.setenv(name, value)
            files(kind).mkdir(BUCKET)
            yield port
        finally:
            process.kill()
            process.wait()


def environment(kind: str, port: int) -> dict[str, str]:
    """What leads the clients of a store to a port of this machine."""
    url = f"http://127.0.0.1:{port}"
    if kind == "s3":
        return {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_CLOUD_PROJECT": "test",
        "FSSPEC_GS_TOKEN": "anon",  # this machine has no credentials of Google's
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google itself what kind a bucket is of
    }


def files(kind: str) -> Any:
    """A client of the store that the environment leads to."""
    credentials = {"token": "anon"} if kind == "gs" else {}
    return fsspec.filesystem(kind, use_listings_cache=False, skip_instance_cache=True, **credentials)


class Proxy:
    """Passes on what comes to `port`, until it is told to cut.

    The server hears nothing of a cut, as where a network fails: moto and the emulator take what they have of a request
    for all of it when a connection is closed, which the real services do not.
    """

    def __init__(self, target: int):
        self.target, self.passed = target, 0
        self.cut_after: int | None = None
        self.times = 0  # that are left
        self.clients: list[socket.socket] = []
        self.closed = False
        self.lock = threading.Lock()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, after: int, times: int) -> None:
        """Drops the connection in the middle, after so many more bytes to the server; and again, so many times."""
        with self.lock:
            self.passed, self.cut_after, self.times = 0, after, times

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.server.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self.clients.append(client)
                for source, sink, counted in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=(source, sink, counted), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with closing(source):
            with suppress(OSError):
                while data := source.recv(4096):
                    if counted and self._cuts(len(data)):
                        sink.sendall(data[: len(data) // 2])
                        source.shutdown(socket.SHUT_RDWR)
                        return
                    sink.sendall(data)
            with suppress(OSError):
                if not (counted and self.closed):
                    sink.shutdown(socket.SHUT_RDWR)

    def _cuts(self, size: int) -> bool:
        with self.lock:
            self.passed += size
            if self.cut_after is None or self.passed < self.cut_after:
                return False
            self.passed, self.times = 0, self.times - 1
            if not self.times:
                self.cut_after = None
            return True

    def close(self) -> None:
        """Drops all connections, and takes no more."""
        self.closed = True
        for end in (self.server, *self.clients):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.server.close()


def _answers(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False
