"""A hub of its own on the loopback: enough of its HTTP interface to stream datasets, and to send and fetch models."""

import base64
import hashlib
import json
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_loopbackOnly"
USER = "me"
LFS = (".safetensors", ".png", ".bin")


class Hub(ThreadingHTTPServer):
    """Serves `datasets` and `models`: {name: {revision: {path: bytes}}}, the revision "main" by default.

    A name in `gated` needs TOKEN to read files, one in `private` to see anything; whoever writes needs it, and may
    only below USER. `breaks[path]` says of the next downloads of a path which ones break off in the middle, `drops`
    of how many of the next uploads of a large file the connection is lost, `failing` how many of the next commits
    answer 500, `sizes` what listings say of paths in place of their sizes; while `open` is not set, commits wait, and
    large files while `storing` is not. What `unknown` names is neither answered nor told. `requests` lists (method,
    path), `commits` (name, revision, message, changed paths).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.datasets: dict[str, dict[str, dict[str, bytes]]] = {}
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}  # large files by their sha256
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.breaks: dict[str, list[bool]] = {}
        self.sizes: dict[str, object] = {}
        self.drops = 0
        self.failing = 0
        self.open = threading.Event()
        self.open.set()
        self.storing = threading.Event()
        self.storing.set()
        self.role = "write"  # of the token
        self.unknown: tuple[str, ...] = ()
        self.requests: list[tuple[str, str]] = []
        self.commits: list[tuple[str, str, str, list[str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def revisions(self, name: str) -> dict[str, dict[str, bytes]] | None:
        return self.datasets.get(name, self.models.get(name))

    def commit(self, name: str, revision: str) -> str | None:
        """The commit of a branch, a tag or itself."""
        commits = {key: _commit(name, key, files) for key, files in self.revisions(name).items()}
        return commits.get(revision, revision if revision in commits.values() else None)

    def files(self, name: str, revision: str) -> dict[str, bytes]:
        commit = self.commit(name, revision)
        return next(files for key, files in self.revisions(name).items() if self.commit(name, key) == commit)

    def environment(self, home, *, token: str | None = TOKEN) -> dict[str, str]:
        """Variables for a process that knows only this hub."""
        values = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return values | ({"HF_TOKEN": token} if token else {})


def _commit(name: str, revision: str, files: dict[str, bytes]) -> str:
    content = f"{name} {revision} {[(path, _blob(path, data)) for path, data in sorted(files.items())]}"
    return hashlib.sha1(content.encode()).hexdigest()


def _is_large(path: str) -> bool:
    return path.endswith(LFS)


@lru_cache(maxsize=1_000)
def _blob(path: str, data: bytes) -> str:
    """What git calls this file, or the hub a large one."""
    if _is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


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

    def do_PUT(self) -> None:
        """A large file, which has its own address and needs no token, as in the cloud."""
        oid, length = self.path.rpartition("/")[2], int(self.headers["Content-Length"])
        self.server.requests.append((self.command, self.path))
        self.server.storing.wait(30)
        if self.server.drops:
            self.server.drops -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        data = self.rfile.read(length)
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.objects[oid] = data
        self.reply(200, b"", {})

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, path))
        if any(name in path for name in self.server.unknown):
            return self.error(404, "")
        self.known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path in ("/api/whoami-v2", "/api/repos/create", "/api/validate-yaml", "/lfs/verify"):
            return getattr(self, path.rpartition("/")[2].replace("-", "_"))()
        api = path.startswith("/api/")
        words = path.removeprefix("/api").removeprefix("/datasets").removeprefix("/models").strip("/").split("/")
        name, words = "/".join(words[:2]).removesuffix(".git"), words[2:]
        if self.server.revisions(name) is None or (name in self.server.private and not self.known):
            return self.error(401, "RepoNotFound")
        if words[:1] in (["preupload"], ["commit"], ["branch"], ["info"], ["auth-check"]):
            if not self.known or not name.startswith(f"{USER}/"):
                return self.error(403 if self.known else 401, "Forbidden")
            if words == ["auth-check", "write"]:
                return self.reply(200, b"", {})
            return getattr(self, f"write_{words[0]}")(name, "/".join(words[1:]))
        action, revision, *rest = words or ("revision", "main")
        rest = "/".join(rest)
        if self.server.commit(name, revision) is None:
            return self.error(404, "RevisionNotFound")
        files = self.server.files(name, revision)
        if api:
            return self.metadata(name, action, revision, rest, files)
        if name in self.server.gated and not self.known:
            return self.error(401, "GatedRepo")
        if rest not in files:
            return self.error(404, "EntryNotFound")
        return self.file(rest, files[rest], self.server.commit(name, revision))

    # ---- reading ----

    def metadata(self, name: str, action: str, revision: str, rest: str, files: dict[str, bytes]) -> None:
        def entry(path: str) -> dict:
            size = self.server.sizes.get(path, len(files[path]))
            found = {"type": "file", "path": path, "size": size, "oid": _blob(path, files[path])}
            large = {"oid": found["oid"], "size": found["size"], "pointerSize": 130}
            return found | ({"lfs": large} if _is_large(path) else {})

        folders = {path.rpartition("/")[0] for path in files} - {""}
        if action == "revision":
            siblings = [{"rfilename": path} for path in files]
            found = {"id": name, "sha": self.server.commit(name, revision), "siblings": siblings}
            found |= {"gated": "manual" if name in self.server.gated else False, "tags": [], "downloads": 0}
            found |= {} if "private" in self.server.unknown else {"private": name in self.server.private}
        elif action == "paths-info":
            wanted = parse_qs(self.body.decode())["paths"]
            found = [entry(path) for path in wanted if path in files]
            found += [{"type": "directory", "path": path, "oid": "0"} for path in wanted if path in folders]
        elif action == "tree":
            within = [path for path in files if path.startswith(f"{rest}/" if rest else "")]
            if rest and not within:
                return self.error(404, "EntryNotFound")
            recursive = "recursive=true" in self.path.lower()
            found = [entry(path) for path in within if recursive or path.rpartition("/")[0] == rest]
            found += [{"type": "directory", "path": path, "oid": "0"} for path in sorted(folders) if path != rest]
        else:
            return self.error(404, "EntryNotFound")
        self.json(found)

    def file(self, path: str, data: bytes, commit: str) -> None:
        oid, status, size = _blob(path, data), 200, len(data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
        if _is_large(path):
            headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(size)}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(size, int(last) + 1 if last else size)
            status, data = 206, data[begin:end]
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        broken = self.command == "GET" and bool(self.server.breaks.get(path)) and self.server.breaks[path].pop(0)
        self.reply(status, data, headers, sent=len(data) // 2 if broken else len(data))

    # ---- writing ----

    def whoami_v2(self) -> None:
        if not self.known:
            return self.error(401, "Unauthorized")
        self.json({"type": "user", "name": USER, "auth": {"accessToken": {"role": self.server.role}}})

    def create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if not self.known or not name.startswith(f"{USER}/"):
            return self.error(403 if self.known else 401, "Forbidden")
        if name in self.server.models:
            return self.json({"url": f"{self.server.url}/{name}"}, 409)
        self.server.models[name] = {"main": {".gitattributes": b"*.safetensors filter=lfs\n"}}
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.server.private.add(name)
        self.json({"url": f"{self.server.url}/{name}"})

    def validate_yaml(self) -> None:
        """As the hub: base models and data sets are ids of the hub, results have a name."""
        text = json.loads(self.body)["content"]
        found = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
        ids = [*([found["base_model"]] if "base_model" in found else []), *found.get("datasets", [])]
        wrong = [item for item in ids if item.startswith((".", "/")) or item.count("/") > 1]
        wrong += [result for result in found.get("model-index", []) if not result["name"] or not result["results"]]
        errors = [{"message": f"{item!r} is not valid"} for item in wrong]
        self.json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def verify(self) -> None:
        wanted = json.loads(self.body)
        ok = len(self.server.objects.get(wanted["oid"], b"")) == wanted["size"]
        self.reply(200 if ok else 404, b"", {})

    def write_preupload(self, name: str, revision: str) -> None:
        files = self.server.files(name, revision)
        answers = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            answer = {"path": path, "uploadMode": "lfs" if _is_large(path) else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": _blob(path, files[path])} if path in files else {}))
        self.json({"files": answers})

    def write_info(self, name: str, rest: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            actions |= {"verify": {"href": f"{self.server.url}/lfs/verify"}}
            objects.append(wanted | ({} if wanted["oid"] in self.server.objects else {"actions": actions}))
        self.json({"transfer": "basic", "objects": objects})

    def write_commit(self, name: str, revision: str) -> None:
        self.server.open.wait(30)
        if self.server.failing:
            self.server.failing -= 1
            return self.error(500, "Internal")
        files, message, changed = dict(self.server.models[name][revision]), "", []
        for line in self.body.splitlines():
            key, value = json.loads(line)["key"], json.loads(line)["value"]
            if key == "header":
                message = value["summary"]
                continue
            changed.append(value["path"])
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                del files[value["path"]]
        self.server.models[name][revision] = files
        self.server.commits.append((name, revision, message, sorted(changed)))
        oid = self.server.commit(name, revision)
        self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def write_branch(self, name: str, branch: str) -> None:
        revisions = self.server.models[name]
        if branch in revisions:
            return self.error(409, "Conflict")
        revisions[branch] = dict(revisions["main"])
        self.reply(201, b"", {})

    # ---- answers ----

    def error(self, status: int, code: str) -> None:
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def json(self, content: object, status: int = 200) -> None:
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

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


def hub_constants(url: str, cache) -> dict[str, object]:
    """Values of huggingface_hub.constants with which a process knows only the hub at `url`."""
    values = {"ENDPOINT": url, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(cache)}
    return values | {"HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}"}


@pytest.fixture(scope="module")
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def logged_in(hub, monkeypatch, tmp_path):
    """This process knows only the loopback hub, has its token and an empty cache; what fails is tried again at once."""
    from huggingface_hub import constants

    for name, value in hub_constants(hub.url, tmp_path / "cache").items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("mypt.storage.hub.WAITS", (0, 0, 0))
    return hub
