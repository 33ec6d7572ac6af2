"""A stand-in for the Hugging Face Hub on loopback: the few addresses that its client asks for, of repositories in a dictionary."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = "hf_" + "x" * 34


@dataclass
class Repository:
    """Its commits by their hash, the last one is main; each holds files by name."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        before = next(reversed(self.commits.values()), {})
        whole = before | files
        name = hashlib.sha1(repr((len(self.commits), sorted(whole.items()))).encode()).hexdigest()
        self.commits[name] = whole
        return name


@dataclass
class Hub:
    """What it holds, and what it was asked for."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(self, name: str, folder: Path, private: bool = False) -> str:
        """Puts the files of a folder there; returns the commit."""
        repository = self.repositories.setdefault(name, Repository(private))
        return repository.commit({path.name: path.read_bytes() for path in folder.iterdir()})


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def tell(self, **values: object) -> None:
            self.answer(200, json.dumps(values).encode(), Content_Type="application/json")

        @property
        def knows_me(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def do_GET(self):
            hub.asked.append(f"{self.command} {self.path}")
            if (about := re.fullmatch(r"/api/models/([^/]+/[^/]+)", self.path)) and about[1] in hub.repositories:
                return self.tell(id=about[1], private=hub.repositories[about[1]].private)
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/?]+)", self.path)
            repository = hub.repositories.get(found[1]) if found else None
            if found is None or repository is None or (repository.private and not self.knows_me):
                return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            commit = next(reversed(repository.commits)) if found[2] == "main" else found[2]
            if commit not in repository.commits:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            if found[3] not in repository.commits[commit]:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            data = repository.commits[commit][found[3]]
            self.answer(200, data, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(data).hexdigest()}"')

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self):
            hub.asked.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/api/validate-yaml":
                return self.tell(errors=[], warnings=[])
            if not self.knows_me:
                return self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                owner = asked.get("organization") or "me"
                if owner == "others":
                    return self.answer(403, X_Error_Message="You don't have the rights to create a model under the namespace others")
                name = f"{owner}/{asked['name']}"
                if name in hub.repositories:
                    return self.answer(409, json.dumps({"url": f"{hub.address}/{name}"}).encode(), Content_Type="application/json")
                hub.repositories[name] = Repository(asked.get("private") or asked.get("visibility") == "private")
                return self.tell(url=f"{hub.address}/{name}")
            name, what = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path).groups()
            if what == "preupload":
                files = json.loads(body)["files"]
                return self.tell(files=[{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files])
            values = [json.loads(line) for line in body.decode().splitlines()]
            files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in values if one["key"] == "file"}
            commit = hub.repositories[name].commit(files)
            self.tell(commitUrl=f"{hub.address}/{name}/commit/{commit}", commitOid=commit)

    return Handler


@contextmanager
def standing_in() -> Iterator[Hub]:
    """Serves a hub for as long as the block lasts."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
