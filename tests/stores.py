"""Object stores on the loopback: real servers in processes of their own, and a wire before them that can be cut."""

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

SECRET = "wJalrXUtnFEMI-loopback-only-secret"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # of every Azurite
)


class Wire(threading.Thread):
    """Forwards connections to a server's port. After a number of bytes it can break or hold them.

    Attributes:
        port: Where clients connect.
        bytes: What clients have sent so far, over all connections.
        cut: After so many bytes from clients the server is gone: connections break, new ones too; None: never.
        hold: After so many bytes nothing is forwarded until `release` is set; None: never.
    """

    def __init__(self, target: int):
        super().__init__(daemon=True)
        self.target, self.bytes = target, 0
        self.cut: int | None = None
        self.hold: int | None = None
        self.release = threading.Event()
        self.reached = threading.Event()  # the point of `cut` or `hold`
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._listener.close()

    def _carry(self, client: socket.socket) -> None:
        if self.cut is not None and self.bytes >= self.cut:
            return client.close()
        server = socket.create_connection(("127.0.0.1", self.target))
        threading.Thread(target=self._pump, args=(server, client, False), daemon=True).start()
        self._pump(client, server, True)

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                if counted:
                    self.bytes += len(data)
                    if self.cut is not None and self.bytes >= self.cut:
                        self.reached.set()
                        break
                    if self.hold is not None and self.bytes >= self.hold:
                        self.reached.set()
                        self.release.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Tunnel(Wire):
    """A proxy that every name leads to the one server behind, whatever it is: for clients that know real names alone.

    Attributes:
        asked: The host and port of each connection.
    """

    def __init__(self, target: int):
        self.asked: list[str] = []
        super().__init__(target)

    def _carry(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := client.recv(1 << 14)):
                return client.close()
            head += data
        method, host, _ = head.split(b"\r\n")[0].decode().split()
        assert method == "CONNECT", head
        self.asked.append(host)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        super()._carry(client)


@contextlib.contextmanager
def served(command: list[str], port: int) -> Iterator[subprocess.Popen]:
    """A server process that answers HTTP at `port`."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            assert process.poll() is None, f"{command} ended with exit code {process.returncode}"
            assert time.monotonic() < end, f"{command} does not answer"
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def forget_clients() -> None:
    """Let the next request of this process be made by the environment as it is then."""
    import fsspec

    from mypt.remote import clients, place

    clients.file_system.cache_clear()
    place._stripped.cache_clear()
    for client in fsspec.registry.values():  # those that were imported
        client.clear_instance_cache()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """The port of a moto server, which keeps its buckets in memory; clients share what botocore reads of its files."""
    pytest.importorskip("moto", reason='moto is not installed (pip install "moto[server]")')
    pytest.importorskip("s3fs", reason="s3fs is not installed (the extra s3)")
    from botocore import loaders

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with served(command, port), pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", functools.cache(loaders.create_loader))
        yield port


def s3_environment(port: int) -> dict[str, str]:
    """Variables for a process that knows only the S3 at that port."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "loopback",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def s3(s3_server, monkeypatch) -> Iterator[str]:
    """s3://BUCKET of a new bucket, which this process reaches by its environment; what fails is tried again at once."""
    yield from _connected(monkeypatch, "s3", s3_environment(s3_server))


@pytest.fixture
def s3_wire(s3_server, s3, monkeypatch) -> Iterator[Wire]:
    """The wire by which this process reaches `s3` from now on."""
    wire = Wire(s3_server)
    for name, value in s3_environment(wire.port).items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield wire
    wire.close()
    forget_clients()


def _connected(monkeypatch, scheme: str, environment: dict[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mypt.remote.place.WAITS", (0, 0, 0))
    forget_clients()
    from mypt.remote.clients import file_system

    bucket = f"b{uuid.uuid4().hex[:12]}"
    uri = f"{scheme}://{bucket}"
    file_system(uri).mkdir(bucket)
    yield uri
    forget_clients()


@pytest.fixture(scope="session")
def gs_server() -> Iterator[int]:
    """The port of an emulator of Google Cloud Storage, which keeps its buckets in memory."""
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read when gcsfs is imported
    for package in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install gcsfs gcp-storage-emulator)")
    port = free_port()
    options = ["--host=127.0.0.1", f"--port={port}", "--in-memory"]
    with served([sys.executable, "-m", "gcp_storage_emulator", "start", *options], port):
        yield port


@pytest.fixture
def gs(gs_server, monkeypatch) -> Iterator[str]:
    """gs://BUCKET of a new bucket."""
    yield from _connected(monkeypatch, "gs", {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{gs_server}"})


@pytest.fixture(scope="session")
def az_server() -> Iterator[int]:
    """The port of Azurite, which keeps its containers in memory."""
    pytest.importorskip("adlfs", reason="adlfs is not installed (the extra azure)")
    if not (azurite := shutil.which("azurite-blob")):
        pytest.skip("azurite is not in PATH (npm install -g azurite)")
    port = free_port()
    options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"]
    with served([azurite, *options, "--blobHost", "127.0.0.1", "--blobPort", str(port)], port):
        yield port


@pytest.fixture
def az(az_server, monkeypatch) -> Iterator[str]:
    """az://CONTAINER of a new container."""
    connection = f"AccountKey={AZURE_KEY};{azure_endpoint(az_server)}"
    yield from _connected(monkeypatch, "az", {"AZURE_STORAGE_CONNECTION_STRING": connection})


@pytest.fixture
def azure_account(tmp_path) -> Iterator[tuple[str, dict[str, str], Tunnel]]:
    """An account as Azure's own are reached: by its name, https://ACCOUNT.blob.core.windows.net, with a certificate.

    Yields a new container, the environment of a process that finds the server by that name, without credentials, and
    the tunnel to it. Only new processes take the certificate: aiohttp reads it when it is imported.
    """
    pytest.importorskip("adlfs", reason="adlfs is not installed (the extra azure)")
    azurite, openssl = shutil.which("azurite-blob"), shutil.which("openssl")
    if not (azurite and openssl):
        pytest.skip("azurite (npm install -g azurite) or openssl is not in PATH")
    from azure.storage.blob import BlobServiceClient

    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    name = f"{AZURE_ACCOUNT}.blob.core.windows.net"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    words += ["-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *words], check=True, capture_output=True)
    port, container = free_port(), f"b{uuid.uuid4().hex[:12]}"
    options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence", "--cert"]
    options += [str(certificate), "--key", str(key), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with served([azurite, *options], port):
        address = f"https://127.0.0.1:{port}/{AZURE_ACCOUNT}"
        with BlobServiceClient(address, AZURE_KEY, connection_verify=str(certificate)) as client:
            client.create_container(container)
        tunnel = Tunnel(port)
        environment = {"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT, "SSL_CERT_FILE": str(certificate)}
        environment |= {"HTTPS_PROXY": f"http://127.0.0.1:{tunnel.port}", "NO_PROXY": ""}
        yield container, environment, tunnel
        tunnel.close()


def azure_endpoint(port: int) -> str:
    """The part of a connection string that names Azurite and its account."""
    at = f"BlobEndpoint=http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    return f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};{at};"


@pytest.fixture(params=["s3", "file", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gs", "az"))])
def bucket(request, tmp_path) -> str:
    """A new bucket of each kind of store, and a folder: what holds for one must hold for all."""
    if request.param != "file":
        return request.getfixturevalue(request.param)
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path / 'bucket'}"
