"""A Hugging Face hub on 127.0.0.1: as much of its HTTP interface as its client uses."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_fake"


class FakeHub(ThreadingHTTPServer):
    """Repositories in memory; all uploads of a repository are its one branch.

    Attributes
    ----------
    repositories : dict of str to dict of str to bytes
        Files by path, by repository.
    requests : list of str
        Method and path of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit_of(self, name: str) -> str:
        files = self.repositories[name]
        digest = hashlib.sha1(usedforsecurity=False)
        for path in sorted(files):
            digest.update(path.encode() + files[path])
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._get(body=False)

    def do_GET(self) -> None:
        self._get(body=True)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._path()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials"}, status=401)
        if path == "/api/repos/create":
            asked = json.loads(raw)
            owner = asked.get("organization") or "somebody"
            name = f"{owner}/{asked['name']}"
            known = name in self.server.repositories
            self.server.repositories.setdefault(name, {".gitattributes": b""})
            url = {"url": f"{self.server.endpoint}/{name}", "name": name}
            return self._json(url, status=409 if known else 200)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name, _, action = path.removeprefix("/api/models/").partition("/preupload/")
        if action:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(raw)["files"]
            ]
            return self._json({"files": files})
        name, _, action = path.removeprefix("/api/models/").partition("/commit/")
        if action:
            for line in raw.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[name][entry["value"]["path"]] = content
            commit = self.server.commit_of(name)
            url = f"{self.server.endpoint}/{name}/commit/{commit}"
            return self._json({"commitUrl": url, "commitOid": commit, "success": True})
        name, _, action = path.removeprefix("/api/models/").partition("/paths-info/")
        if action:
            files = self.server.repositories.get(name, {})
            asked = parse_qs(raw.decode()).get("paths", [])
            return self._json([_described(p, files[p]) for p in asked if p in files])
        return self._json({"error": f"no such interface: {path}"}, status=501)

    def _get(self, *, body: bool) -> None:
        path = self._path()
        if path.startswith("/api/models/"):
            name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            if name not in self.server.repositories:
                return self._missing("RepoNotFound", body=body)
            files = self.server.repositories[name]
            _, _, place = path.partition(f"{name}/tree/")
            if place:
                folder = place.partition("/")[2]
                if folder:
                    files = {file: files[file] for file in files if file.startswith(f"{folder}/")}
                if not files:
                    return self._missing("EntryNotFound", body=body)
                tree = [_described(file, content) for file, content in sorted(files.items())]
                return self._json(tree)
            information = {
                "id": name,
                "modelId": name,
                "sha": self.server.commit_of(name),
                "private": False,
                "siblings": [{"rfilename": file} for file in sorted(files)],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            return self._json(information)
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        file = rest.partition("/")[2]
        if name not in self.server.repositories:
            return self._missing("RepoNotFound", body=body)
        content = self.server.repositories[name].get(file)
        if content is None:
            return self._missing("EntryNotFound", body=body)
        self.send_response(200)
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", self.server.commit_of(name))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _path(self) -> str:
        # Datasets are kept as models are.
        path = unquote(urlsplit(self.path).path).replace("/api/datasets/", "/api/models/", 1)
        path = path.removeprefix("/datasets")
        self.server.requests.append(f"{self.command} {path}")
        return path

    def _missing(self, code: str, *, body: bool) -> None:
        self._json({"error": code}, status=404, body=body, headers={"X-Error-Code": code})

    def _json(
        self,
        value: Any,
        *,
        status: int = 200,
        body: bool = True,
        headers: dict[str, str] | None = None,
    ) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _described(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def fake_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serve a hub, and have the client of this process use it, with a cache of its own."""
    from huggingface_hub import close_session, constants

    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        close_session()
        try:
            yield hub
        finally:
            close_session()
            hub.shutdown()
            thread.join()
