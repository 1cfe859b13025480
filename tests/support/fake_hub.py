"""A server on 127.0.0.1 that speaks as much of the Hugging Face hub's protocol as its own client needs to download."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """A repository `files` {name: bytes} as "owner/tiny", of which those of `large` are LFS files.

    asked: (method, path, Range) of every request. cut: after so many bytes of a large file the connection is closed,
    once. damaged: large files come with a wrong byte. gated, token: what 403 and 401 are answered for.
    """

    def __init__(self, files, large=("model.safetensors",), repo="owner/tiny", config=None):
        self.files, self.large, self.repo, self.config = files, large, repo, config
        self.asked, self.cut, self.damaged, self.gated, self.token, self.sizes = [], None, False, False, None, {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def entry(self, name):
        """What the API says of a file: its size and, of a large one, its sha256."""
        data, size = self.files[name], self.sizes.get(name, len(self.files[name]))
        found = {"size": size, "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        if name in self.large:
            found["lfs"] = {"size": size, "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
            found["lfs"]["oid"] = found["lfs"]["sha256"]
        return found

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        self.asked.append((request.command, path, request.headers.get("Range")))
        if not path.startswith((f"/api/models/{self.repo}", f"/{self.repo}/")):
            return self.refuse(request, 404, "RepoNotFound", "Repository not found")
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.refuse(request, 401, "RepoNotFound", "Repository not found")
        if found := re.fullmatch(rf"/api/models/{self.repo}(?:/revision/(.+))?", path):
            if found[1] not in (None, "main", "v1", COMMIT):
                return self.refuse(request, 404, "RevisionNotFound", "Invalid rev id")
            siblings = [{"rfilename": n, "blobId": self.entry(n)["oid"], **self.entry(n)} for n in self.files]
            facts = {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0}
            return self.json(request, facts | {"likes": 0, "siblings": siblings, "config": self.config})
        if path.startswith(f"/api/models/{self.repo}/tree/"):
            return self.json(request, [{"type": "file", "path": name, **self.entry(name)} for name in self.files])
        if self.gated:
            return self.refuse(request, 403, "GatedRepo", "Access to model is restricted")
        return self.resolve(request, path.removeprefix(f"/{self.repo}/resolve/").partition("/")[2])

    def resolve(self, request, name):
        if name not in self.files:
            return self.refuse(request, 404, "EntryNotFound", "Entry not found")
        data, entry = self.files[name], self.entry(name)
        tag = entry["lfs"]["sha256"] if "lfs" in entry else entry["oid"]
        if self.damaged and "lfs" in entry:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int((re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "bytes=0-")) or "00")[1])
        request.send_response(206 if "Range" in request.headers else 200)
        request.send_header("ETag", f'"{tag}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Accept-Ranges", "bytes")
        if "lfs" in entry:
            request.send_header("X-Linked-Etag", f'"{tag}"')
            request.send_header("X-Linked-Size", str(len(data)))
        request.send_header("Content-Length", str(len(data) - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        if request.command == "GET":
            cut, self.cut = (self.cut, None) if "lfs" in entry else (None, self.cut)
            request.wfile.write(data[start:] if cut is None else data[start : start + cut])
            request.wfile.flush()
            if cut is not None:
                request.close_connection = True

    def json(self, request, value):
        body = json.dumps(value).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def refuse(self, request, status, code, message):
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", message)
        request.send_header("Content-Length", "0")
        request.end_headers()
