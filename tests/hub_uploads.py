"""What the hub on the loopback answers to those who write: accounts, new repositories, uploads (git's and LFS's) and commits.

Beside hub.py, whose server it is part of. As the hub does it: a commit names small files with their content and large ones by
the sha256 under which they were put there before.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SMALLEST_LFS_FILE = 1000  # bytes; the hub's is 10 MB, of binary files less
_WRITING = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main")
_LFS_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_LFS_OBJECT = re.compile(r"/lfs/([0-9a-f]{64})")


@dataclass(frozen=True)
class Account:
    """Who has a token.

    Attributes:
        name: Of the user.
        organisations: In which the user is.
        role: Of the token, `read` or `write`.
    """

    name: str
    organisations: tuple[str, ...] = ()
    role: str = "write"

    def may_write(self, repository: str) -> bool:
        """Into a repository of its own, or of an organisation."""
        return self.role == "write" and repository.split("/")[0] in (self.name, *self.organisations)


@dataclass
class Uploads:
    """What was written to the hub beside its folder.

    Attributes:
        accounts: By token.
        objects: LFS files by sha256.
        private: Repositories that are not public.
        commits: Of each repository the messages, in order.
    """

    accounts: dict[str, Account] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    commits: dict[str, list[str]] = field(default_factory=dict)


class WriteRefused(Exception):
    """An answer that is an error: its HTTP status, what it says, and more of its JSON."""

    def __init__(self, status: int, message: str, **more: str):
        super().__init__(message)
        self.status, self.message, self.more = status, message, more


def answer_writer(
    uploads: Uploads, root: Path, url: str, method: str, path: str, token: str | None, body: bytes
) -> Any:
    """Answers a request, JSON-ready; None where it is not one of a writer.

    Raises:
        WriteRefused: As the hub refuses it.
    """
    if path == "/api/validate-yaml":
        return _check_card(json.loads(body)["content"])
    if match := _LFS_OBJECT.fullmatch(path):
        if hashlib.sha256(body).hexdigest() != match[1]:
            raise WriteRefused(400, "the content is not what was announced")
        uploads.objects[match[1]] = body
        return {}
    if path == "/api/whoami-v2":
        account = _account(uploads, token)
        return {
            "type": "user",
            "name": account.name,
            "orgs": [{"type": "org", "name": name} for name in account.organisations],
            "auth": {"type": "access_token", "accessToken": {"displayName": "ours", "role": account.role}},
        }
    if path == "/api/repos/create":
        return _create(uploads, root, url, _account(uploads, token), json.loads(body))
    if match := _LFS_BATCH.fullmatch(path):
        _check_writer(uploads, token, match[1])
        objects = json.loads(body)["objects"]
        return {"transfer": "basic", "objects": [_lfs_action(uploads, url, one) for one in objects]}
    if method == "POST" and (match := _WRITING.fullmatch(path)):
        _check_writer(uploads, token, match[1])
        folder = root / "models" / match[1]
        if match[2] == "preupload":
            return {"files": [_upload_mode(one, folder) for one in json.loads(body)["files"]]}
        return _commit(uploads, url, match[1], folder, [json.loads(line) for line in body.splitlines()])
    return None


def _account(uploads: Uploads, token: str | None) -> Account:
    if token not in uploads.accounts:
        raise WriteRefused(401, "Invalid username or password.")
    return uploads.accounts[token]


def _check_writer(uploads: Uploads, token: str | None, repository: str) -> None:
    if not _account(uploads, token).may_write(repository):
        raise WriteRefused(403, "Forbidden: you must have write access to this repository")


def _create(uploads: Uploads, root: Path, url: str, account: Account, asked: dict[str, Any]) -> Any:
    repository = f"{asked['organization'] or account.name}/{asked['name']}"
    if not account.may_write(repository):
        namespace = repository.split("/")[0]
        raise WriteRefused(
            403, f'You don\'t have the rights to create a model under the namespace "{namespace}"'
        )
    folder = root / "models" / repository
    if folder.exists():
        raise WriteRefused(409, "You already created this model repo", url=f"{url}/{repository}")
    folder.mkdir(parents=True)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    if asked.get("private") or asked.get("visibility") == "private":
        uploads.private.add(repository)
    return {"url": f"{url}/{repository}", "name": repository, "id": "0"}


def _check_card(content: str) -> Any:
    """The front matter: YAML, a mapping, with the types that the hub's documentation of model cards asks for."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    errors = []
    metadata = yaml.safe_load(match[1]) if match else {}
    for key in ("license", "pretty_name", "base_model", "library_name"):
        if not isinstance(metadata.get(key, ""), str):
            errors.append(f'"{key}" must be a string')
    for key in ("language", "tags", "datasets"):
        values = metadata.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{key}" must be an array of strings')  # `no` alone is YAML's false
    for code in metadata.get("language", []):
        if not re.fullmatch(r"[a-z]{2,3}", str(code)):
            errors.append(f'"language" must only contain ISO 639 codes, not {code}')
    if errors:
        raise WriteRefused(400, "; ".join(errors))
    return {"errors": [], "warnings": [] if metadata else [{"message": "empty or missing yaml metadata"}]}


def _upload_mode(file: dict[str, Any], folder: Path) -> Any:
    path = folder / file["path"]
    mode = "lfs" if file["size"] >= SMALLEST_LFS_FILE and not file["path"].endswith(".md") else "regular"
    found = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
    if path.is_file():
        content = path.read_bytes()
        as_blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found["oid"] = hashlib.sha256(content).hexdigest() if mode == "lfs" else as_blob
    return found


def _lfs_action(uploads: Uploads, url: str, one: dict[str, Any]) -> Any:
    if one["oid"] in uploads.objects:
        return one
    return {**one, "actions": {"upload": {"href": f"{url}/lfs/{one['oid']}"}}}


def _commit(uploads: Uploads, url: str, repository: str, folder: Path, lines: list[dict[str, Any]]) -> Any:
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "header":
            uploads.commits.setdefault(repository, []).append(value["summary"])
            continue
        path = folder / value["path"]
        if key == "deletedFile":
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        content = base64.b64decode(value["content"]) if key == "file" else uploads.objects[value["oid"]]
        path.write_bytes(content)
    number = len(uploads.commits[repository])
    oid = hashlib.sha1(f"{repository}/{number}".encode()).hexdigest()
    return {"success": True, "commitOid": oid, "commitUrl": f"{url}/{repository}/commit/{oid}"}
