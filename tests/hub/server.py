"""A stand-in for the Hub's HTTP interface on 127.0.0.1: what huggingface_hub 2.4 asks of it.

It keeps repositories in memory. Files named ``*.safetensors`` go through the LFS protocol, as on the
Hub. Xet is not spoken: clients switch it off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in_token"
SAID = "no token \x1b[31mof\nyours"
"""What the server says to a wrong token: with characters that must not reach a terminal."""


@dataclass
class Repo:
    """One repository: its commits, oldest first, each the files after it."""

    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    def sha(self, index: int = -1) -> str:
        index %= len(self.commits)
        return hashlib.sha1(f"{id(self)} {index}".encode()).hexdigest()

    def find(self, revision: str) -> int | None:
        """Index of a commit, by branch or by its digits."""
        if revision == "main":
            return len(self.commits) - 1
        known = [self.sha(i) for i in range(len(self.commits))]
        return known.index(revision) if revision in known else None


@dataclass
class Hub:
    """The stand-in's state, and the faults that a test asks for.

    Attributes:
        repos: Repositories by name.
        blobs: Files that came through LFS, by SHA-256.
        asked: Method and path of every request.
        damage: What is sent instead of a file's bytes.
        refuse: Statuses to answer with, by part of a path.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    damage: Any = None
    refuse: dict[str, int] = field(default_factory=dict)
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        for part, status in self.hub.refuse.items():
            if part in path:
                self._send(status, b"{}", {"X-Error-Message": "as the test asked"})
                return
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {TOKEN}"):
            said = "Invalid credentials in Authorization header"
            self._json({"error": SAID}, 401, {"X-Error-Message": said})
            return
        self.known = authorization is not None
        for methods, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods:
                answer(self, body, **found.groupdict())
                return
        self._json({"error": "no such route"}, 404)

    # -- answers ---------------------------------------------------------------------------------

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(status, json.dumps(value).encode(), {**kind, **(headers or {})})

    def _repo(self, repo: str) -> Repo | None:
        """The repository if the asker may see it; else an answer is sent, as the Hub's is."""
        found = self.hub.repos.get(repo)
        if found is None or (found.private and not self.known):
            status = 404 if self.known else 401
            self._json({"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def _may_write(self) -> bool:
        if not self.known:
            self._json({"error": "Invalid username or password."}, 401)
        return self.known

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._may_write():
            return
        if asked["organization"] != "me":
            self._json({"error": "You don't have the rights to create a model there"}, 403)
        elif name in self.hub.repos:
            self._json({"error": "You already created this model repo"}, 409)
        else:
            self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
            self._json({"url": f"{self.hub.address}/{name}", "name": name})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        if "license: no-such" in content:
            errors = [{"message": '"license" must be one of [apache-2.0, mit]'}]
            self._json({"errors": errors, "warnings": []}, 400)
        else:
            self._json({"errors": [], "warnings": []})

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        found = self._repo(repo)
        if found is None:
            return
        index = found.find(revision)
        if index is None:
            self._json({"error": "x"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": name} for name in found.commits[index]]
        about = {"id": repo, "sha": found.sha(index), "private": found.private}
        self._json({**about, "siblings": siblings})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self._may_write() and self._repo(repo):
            modes = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": one["path"],
                    "uploadMode": modes[one["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self._json({"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            upload = {"href": f"{self.hub.address}/lfs/{one['oid']}"}
            verify = {"href": f"{self.hub.address}/verify"}
            objects.append({**one, "actions": {"upload": upload, "verify": verify}})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self._json({})

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        assert len(self.hub.blobs[asked["oid"]]) == asked["size"]
        self._json({})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if not self._may_write():
            return
        found = self._repo(repo)
        if found is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        head = next(line["value"] for line in lines if line["key"] == "header")
        if head.get("parentCommit", found.sha()) != found.sha():
            self._json({"error": "A commit has happened since"}, 412)
            return
        files = dict(found.commits[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        found.commits.append(files)
        found.messages.append(head["summary"])
        sha = found.sha()
        self._json({"commitUrl": f"{self.hub.address}/{repo}/commit/{sha}", "commitOid": sha})

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        found = self._repo(repo)
        if found is None:
            return
        index = found.find(revision)
        content = None if index is None else found.commits[index].get(name)
        if content is None:
            self._json({"error": "x"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": found.sha(index), "ETag": f'"{hash(content):x}"'}
        if self.hub.damage is not None:
            content = self.hub.damage(content)
        self._send(200, content, headers)


ROUTES = (
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", Handler.info),
    ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>.+)", Handler.info),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)", Handler.commit),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.upload),
    ("POST", r"/verify", Handler.verify),
    (
        "HEAD GET",
        r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)",
        Handler.resolve,
    ),
)


@contextmanager
def running() -> Iterator[Hub]:
    """A stand-in that answers on a free port until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
