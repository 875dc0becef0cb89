"""A Hugging Face hub on the loopback: a real HTTP server for a folder of repositories.

What huggingface_hub, datasets and transformers ask of the hub is answered as the hub answers it: repository info, trees,
files with their commit, ETag and ranges, gated repositories, and the error codes that the clients tell apart; what those who
write ask is answered in hub_uploads.py. The clients read HF_ENDPOINT when they are imported, so each is a process of its own with
`Hub.environment`.

    <root>/datasets/<owner>/<name>/...            the revision `main` of a data set
    <root>/models/<owner>/<name>@<revision>/...   another revision of a model
    <root>/files/...                              plain files, under /files/
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_uploads import Account, Uploads, WriteRefused, answer_writer

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"(?:/(datasets))?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
# What a client would take from the tests' own environment, beside everything of Hugging Face's.
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass
class Hub:
    """The server as tests see it.

    Attributes:
        root: Its repositories.
        url: Where it answers.
        gated: Repository ids whose files need a token, and the tokens whose owners have accepted the terms.
        asked: `METHOD /path` of every request, in order.
        uploads: Who may write, and what was written beside the folder.
    """

    root: Path
    url: str
    gated: Mapping[str, frozenset[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    uploads: Uploads = field(default_factory=Uploads)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """For a client process that has all that it keeps in `home`, and no token."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) and name.lower() not in _PROXIES
        }
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "SACREBLEU": str(home / "sacrebleu"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "*",
        }
        return kept | ours | more

    def folder(self, kind: str, repository: str, revision: str) -> Path | None:
        """Of a revision, which is `main`, the name of another, or either's commit."""
        main = self.root / kind / repository
        for folder in (main, *sorted(main.parent.glob(f"{main.name}@*"))):
            name = folder.name.partition("@")[2] or "main"
            if folder.is_dir() and revision in (name, commit(folder)):
                return folder
        return None


@contextmanager
def serving(
    root: Path,
    *,
    gated: Mapping[str, frozenset[str]] | None = None,
    accounts: Mapping[str, Account] | None = None,
) -> Iterator[Hub]:
    """Serves a folder until the end of the block; who has one of the tokens of `accounts` may write into it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        hub = Hub(root, f"http://127.0.0.1:{server.server_port}", gated or {})
        hub.uploads.accounts.update(accounts or {})
        server.hub = hub  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def commit(folder: Path) -> str:
    """Of a revision: changes with any file of it, 40 hexadecimal digits."""
    names = "\n".join(f"{path.relative_to(folder)} {_oid(path)}" for path in _files(folder))
    return hashlib.sha1(names.encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _oid(path: Path) -> str:
    """As git names a blob, which the hub gives as ETag."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: Path, folder: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
    return {"type": "file", "oid": _oid(path), "size": path.stat().st_size, "path": name}


class _Refused(Exception):
    """An answer that is an error: status, the hub's code for it, and headers beside."""

    def __init__(self, status: int, code: str, message: str = "", **headers: str):
        super().__init__(message or code)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message or code} | headers
        self.headers = {name: value for name, value in self.headers.items() if value}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        """What was asked is kept in `asked`."""

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.asked.append(f"{self.command} {path}")
        body = self._body()
        try:
            written = answer_writer(
                self.hub.uploads, self.hub.root, self.hub.url, self.command, path, self._token, body
            )
            if written is not None:
                self._send(json.dumps(written).encode(), {"Content-Type": "application/json"})
            elif match := _API.fullmatch(path):
                found = self._api(*match.groups(), query=parse_qs(url.query), body=body)
                self._send(json.dumps(found).encode(), {"Content-Type": "application/json"})
            elif match := _FILE.fullmatch(path):
                self._file(*match.groups())
            elif path.startswith("/files/") and (self.hub.root / path[1:]).is_file():
                self._send((self.hub.root / path[1:]).read_bytes(), {})
            else:
                raise _Refused(404, "", "no such page")
        except _Refused as refusal:
            self._send(json.dumps({"error": str(refusal)}).encode(), refusal.headers, refusal.status)
        except WriteRefused as refusal:
            told = {"error": refusal.message, "errors": [{"message": refusal.message}]} | refusal.more
            headers = {"Content-Type": "application/json", "X-Error-Message": refusal.message}
            self._send(json.dumps(told).encode(), headers, refusal.status)

    def _body(self) -> bytes:
        """Of known length, or in chunks as a stream is sent."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _api(
        self,
        kind: str,
        repository: str,
        what: str | None,
        revision: str | None,
        path: str | None,
        *,
        query: Mapping[str, list[str]],
        body: bytes,
    ) -> Any:
        """Info, tree or some paths of a repository; public also where its files are gated."""
        folder = self._folder(kind, repository, revision or "main")
        if what in (None, "revision"):
            return {
                "_id": "0",
                "id": repository,
                "sha": commit(folder),
                "private": repository in self.hub.uploads.private,
                "gated": "auto" if repository in self.hub.gated else False,
                "tags": [],
                "siblings": [{"rfilename": str(file.relative_to(folder))} for file in _files(folder)],
            }
        if what == "paths-info":
            asked = parse_qs(body.decode()).get("paths", [])
            if self.headers.get("Content-Type", "").startswith("application/json"):
                asked = json.loads(body)["paths"]
            return [_entry(folder / name, folder) for name in asked if (folder / name).exists()]
        top = folder / (path or "")
        if not top.is_dir():
            raise _Refused(404, "EntryNotFound")
        recursive = query.get("recursive", ["false"])[0].lower() in ("1", "true")
        return [_entry(one, folder) for one in sorted(top.rglob("*") if recursive else top.iterdir())]

    def _file(self, kind: str | None, repository: str, revision: str, name: str) -> None:
        folder = self._folder(kind or "models", repository, revision)
        self._check_access(repository)
        headers = {"X-Repo-Commit": commit(folder)}
        path = folder / name
        if not path.is_file():
            raise _Refused(404, "EntryNotFound", **headers)
        headers |= {"ETag": f'"{_oid(path)}"', "Accept-Ranges": "bytes"}
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(content, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            raise _Refused(416, "", "range", **{"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(content[first : last + 1], headers, HTTPStatus.PARTIAL_CONTENT)

    def _folder(self, kind: str, repository: str, revision: str) -> Path:
        if not (self.hub.root / kind / repository).is_dir():
            # To a stranger the hub does not tell whether a repository is private or not there. It sends no code with this 401:
            # clients know it by the https address, which this one has not.
            if self._token is None:
                raise _Refused(401, "RepoNotFound", "Invalid username or password.")
            raise _Refused(404, "RepoNotFound", "Repository not found")
        folder = self.hub.folder(kind, repository, revision)
        if folder is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return folder

    def _check_access(self, repository: str) -> None:
        granted = self.hub.gated.get(repository)
        if granted is not None and self._token not in granted:
            raise _Refused(401 if self._token is None else 403, "GatedRepo", "Access to it is restricted.")

    @property
    def _token(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bearer" else None

    def _send(self, content: bytes, headers: Mapping[str, str], status: int = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
