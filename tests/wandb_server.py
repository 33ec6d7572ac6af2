"""A server on this machine that answers W&B as the real one does, as far as a run without artifacts asks, or behaves badly."""

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        server: Any = self.server
        asked = json.loads(body) if self.path == "/graphql" else {}
        server.asked.append((asked.get("operationName"), asked.get("variables") or {}))
        if server.behaviour == "silent":
            server.closing.wait(60)
            return
        reply = json.dumps(self.reply(asked)).encode()
        self.send_response(500 if server.behaviour == "failing" else 200)
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        given, operation = asked.get("variables") or {}, asked.get("operationName")
        project = {"id": "cA==", "name": given.get("project"), "entity": {"id": "ZQ==", "name": "someone"}}
        if operation == "RunResumeStatus":
            return {"data": {"model": {**project, "bucket": None}}}
        if operation == "UpsertBucket":
            bucket = {"id": "Yg==", "name": given["name"], "displayName": given["displayName"] or "", "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if operation == "CreateRunFiles":
            address = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in given["files"]]
            return {"data": {"createRunFiles": {"runID": "Yg==", "uploadHeaders": [], "files": files}}}
        return {"data": {}}

    do_GET = do_POST = do_PUT = answer  # noqa: N815


@contextmanager
def wandb_server(behaviour: str = "well") -> Iterator[Any]:
    """Runs the server; it answers ``well``, with an error where it is ``failing``, or never where it is ``silent``, from when it is told so."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.behaviour, server.asked, server.closing, server.daemon_threads = behaviour, [], threading.Event(), True
    server.handle_error = lambda *_: None  # W&B has gone
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
