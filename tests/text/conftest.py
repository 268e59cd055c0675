"""A hub of its own on the loopback: enough of its HTTP interface to stream datasets from."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import xxhash

TOKEN = "hf_loopbackOnly"


class Hub(ThreadingHTTPServer):
    """Serves `datasets`: {name: {revision: {path: bytes}}}, the revision "main" by default.

    A name in `gated` needs TOKEN to read files, one in `private` to see anything. `breaks[path]` says of the next
    downloads of a path which ones break off in the middle. `requests` lists (method, path).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.datasets: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.breaks: dict[str, list[bool]] = {}
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, revision: str) -> str | None:
        """The commit of a branch, a tag or itself."""
        commits = {key: xxhash.xxh3_128_hexdigest(f"{name} {key}".encode()) + "0" * 8 for key in self.datasets[name]}
        return commits.get(revision, revision if revision in commits.values() else None)

    def files(self, name: str, revision: str) -> dict[str, bytes]:
        commit = self.commit(name, revision)
        return next(files for key, files in self.datasets[name].items() if self.commit(name, key) == commit)


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, path))
        api = path.startswith("/api/datasets/")
        words = path.removeprefix("/api").removeprefix("/datasets/").split("/")
        name, words = "/".join(words[:2]), words[2:]
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if name not in self.server.datasets or (name in self.server.private and not known):
            return self.error(401, "RepoNotFound")
        action, revision, *rest = words or ("revision", "main")
        rest = "/".join(rest)
        if self.server.commit(name, revision) is None:
            return self.error(404, "RevisionNotFound")
        files = self.server.files(name, revision)
        if api:
            return self.metadata(name, action, revision, rest, files)
        if name in self.server.gated and not known:
            return self.error(401, "GatedRepo")
        if rest not in files:
            return self.error(404, "EntryNotFound")
        return self.file(rest, files[rest], self.server.commit(name, revision))

    def metadata(self, name: str, action: str, revision: str, rest: str, files: dict[str, bytes]) -> None:
        def entry(path: str) -> dict:
            return {
                "type": "file",
                "path": path,
                "size": len(files[path]),
                "oid": xxhash.xxh3_64_hexdigest(files[path]),
            }

        folders = {path.rpartition("/")[0] for path in files} - {""}
        if action == "revision":
            siblings = [{"rfilename": path} for path in files]
            found = {"id": name, "sha": self.server.commit(name, revision), "siblings": siblings, "private": False}
            found |= {"gated": "manual" if name in self.server.gated else False, "tags": [], "downloads": 0}
        elif action == "paths-info":
            wanted = parse_qs(self.body.decode())["paths"]
            found = [entry(path) for path in wanted if path in files]
            found += [{"type": "directory", "path": path, "oid": "0"} for path in wanted if path in folders]
        elif action == "tree":
            within = [path for path in files if path.startswith(f"{rest}/" if rest else "")]
            if not within:
                return self.error(404, "EntryNotFound")
            recursive = "recursive=true" in self.path.lower()
            found = [entry(path) for path in within if recursive or path.rpartition("/")[0] == rest]
            found += [{"type": "directory", "path": path, "oid": "0"} for path in sorted(folders) if path != rest]
        else:
            return self.error(404, "EntryNotFound")
        self.reply(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def file(self, path: str, data: bytes, commit: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{xxhash.xxh3_64_hexdigest(data)}"', "Accept-Ranges": "bytes"}
        status, size = 200, len(data)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(size, int(last) + 1 if last else size)
            status, data = 206, data[begin:end]
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        broken = self.command == "GET" and bool(self.server.breaks.get(path)) and self.server.breaks[path].pop(0)
        self.reply(status, data, headers, sent=len(data) // 2 if broken else len(data))

    def error(self, status: int, code: str) -> None:
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def reply(self, status: int, data: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:sent])
        if sent is not None and sent < len(data):
            self.wfile.flush()
            self.close_connection = True


@pytest.fixture(scope="module")
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
