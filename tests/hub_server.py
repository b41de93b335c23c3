"""A Hugging Face hub on this machine: the few calls that pushing and fetching make."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_a_token_of_the_test"


class Hub(ThreadingHTTPServer):
    """Repositories as commit -> path -> bytes; knows one user."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        """What came by Git LFS: SHA-256 -> bytes."""
        self.calls: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        commits = self.commits.get(repo, {})
        if revision == "main":
            return list(commits.values())[-1] if commits else None
        return commits.get(revision)

    def head(self, repo: str) -> str:
        return list(self.commits[repo])[-1]


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, body = unquote(self.path.partition("?")[0]), self.body()
        self.server.calls.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(repo)
            if repo in self.server.commits:
                return self.answer(409, {"error": "it is there", "url": repo})
            self.server.commits[repo] = {"0" * 40: {}}
            return self.answer(200, {"url": f"{self.server.address}/{repo}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            found = [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": found})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        repo, _, rest = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")
        if rest == "preupload":
            modes = [
                # As on the hub, whose .gitattributes send weights to LFS whatever their size.
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": modes})
        if rest == "commit":
            files = dict(self.server.files(repo) or {})
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
                elif one["key"] == "lfsFile":
                    files[one["value"]["path"]] = self.server.large[one["value"]["oid"]]
            oid = hashlib.sha1(body).hexdigest()
            self.server.commits[repo][oid] = files
            url = f"{self.server.address}/{repo}/commit/{oid}"
            return self.answer(200, {"commitUrl": url, "commitOid": oid, "success": True})
        return self.answer(404, {"error": f"this hub has no {path}"})

    def do_PUT(self) -> None:
        body = self.body()
        oid = hashlib.sha256(body).hexdigest()
        self.server.calls.append(f"PUT {self.path}")
        if self.path != f"/lfs/{oid}":
            return self.answer(400, {"error": "these bytes have another SHA-256"})
        self.server.large[oid] = body
        return self.answer(200)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.calls.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            if not self.may_see(repo):
                return self.answer(404, X_Error_Code="RepoNotFound")
            siblings = [{"rfilename": name} for name in self.server.files(repo) or {}]
            sha = revision if revision not in ("", "main") else self.server.head(repo)
            return self.answer(200, {"id": repo, "sha": sha, "siblings": siblings})
        repo, _, rest = path.strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if not self.may_see(repo):
            return self.answer(404, X_Error_Code="RepoNotFound")
        files = self.server.files(repo, revision)
        if files is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if name not in files:
            return self.answer(404, X_Error_Code="EntryNotFound")
        commit = self.server.head(repo) if revision == "main" else revision
        etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        return self.answer(200, files[name], X_Repo_Commit=commit, ETag=etag)

    do_HEAD = do_GET

    def may_see(self, repo: str) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        return repo in self.server.commits and (known or repo not in self.server.private)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub for the length of a block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
