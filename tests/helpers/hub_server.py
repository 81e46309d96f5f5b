"""Stand-in for the hub on loopback: commits and files of data sets, by the calls that the libraries of the hub make."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class HubServer:
    """Server of data sets: `files[name][revision][path]` are bytes. `asked` lists the requests, as "GET /path"."""

    def __init__(self, files: dict[str, dict[str, dict[str, bytes]]]):
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_) -> None:
                pass

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                server.asked.append(f"{self.command} {path}")
                self._answer(*server.answer(files, path, b""))

            do_HEAD = do_GET

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = unquote(urlsplit(self.path).path)
                server.asked.append(f"{self.command} {path}")
                self._answer(*server.answer(files, path, body))

            def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if wanted and status == 200:
                    first, last = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
                    headers |= {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
                    status, body = 206, body[first : last + 1]
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def answer(files, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers of one request."""

        def found(value) -> tuple[int, bytes, dict[str, str]]:
            return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}

        def missing(code: str) -> tuple[int, bytes, dict[str, str]]:
            return 404, b"", {"X-Error-Code": code, "X-Error-Message": "not here"}

        api = re.fullmatch(r"/api/datasets/(\w+/\w+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path)
        raw = re.fullmatch(r"/datasets/(\w+/\w+)/resolve/([^/]+)/(.+)", path)
        name = (api or raw or [None, None])[1]
        if name not in files:
            return missing("RepoNotFound")
        revision = (api[3] if api else raw[2]) or "main"
        commits = {key: hashlib.sha1(key.encode()).hexdigest() for key in files[name]}
        revision = next((key for key, commit in commits.items() if commit == revision), revision)
        if revision not in files[name]:
            return missing("RevisionNotFound")
        held, commit = files[name][revision], commits[revision]

        def entry(file: str) -> dict:
            return {"type": "file", "path": file, "size": len(held[file]), "oid": hashlib.sha1(held[file]).hexdigest()}

        if raw:
            if raw[3] not in held:
                return missing("EntryNotFound")
            return 200, held[raw[3]], {"X-Repo-Commit": commit, "ETag": f'"{entry(raw[3])["oid"]}"'}
        if api[2] == "tree":
            return found([entry(file) for file in held if file.startswith(api[4] or "")])
        if api[2] == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith(b"{") else []
            return found([entry(file) for file in asked if file in held])
        siblings = [{"rfilename": file} for file in held]
        return found({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0})
