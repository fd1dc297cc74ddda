"""An imitation of the Hugging Face hub on 127.0.0.1, as far as downloads ask."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = re.compile("[0-9a-f]{40}")


class Hub(ThreadingHTTPServer):
    """Serves the files of `<models|datasets>/<owner>/<name>/` below `root`, under any revision."""

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.url = Path(root), f"http://127.0.0.1:{self.server_port}"
        Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """`/<repository>/resolve/<revision>/<file>`, and `/api/<kind>/<repository>[/tree/...]`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        api, *parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        parts = parts if api == "api" else [api, *parts]
        parts = parts if parts[0] in ("models", "datasets") else ["models", *parts]
        folder, rest = self.server.root.joinpath(*parts[:3]), parts[3:]
        stated = next(filter(COMMIT.fullmatch, rest), None)
        commit = stated or hashlib.sha1(folder.name.encode()).hexdigest()
        if not folder.is_dir():
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if api == "api":
            return self.answer(200, json.dumps(self.listing(folder, rest, commit)).encode())
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        body = file.read_bytes()
        self.answer(200, body, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'})

    def listing(self, folder: Path, rest: list[str], commit: str) -> list | dict:
        """Of a tree every file, whatever its folder: who asks wants all."""
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        about = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            return [
                dict(type="file", path=name, size=len(body), oid=hashlib.sha1(body).hexdigest())
                for name, body in about.items()
                if name.startswith(below)
            ]
        return dict(id="/".join(folder.parts[-2:]), sha=commit, siblings=[dict(rfilename=n) for n in about])

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
