"""What the Hub's server answers to each request of the released client."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.support.hub_state import TOKEN, Blob, Fault, Hub, HubRepo, is_lfs


class Answer(Exception):
    """Ends a request."""

    def __init__(self, status: int, value: Any = None, **headers: str) -> None:
        super().__init__(status)
        self.status, self.value = status, value
        self.headers = {key.replace("_", "-"): text for key, text in headers.items()}


def missing(code: str, status: int = 404, text: str = "") -> Answer:
    return Answer(status, {"error": text or code}, X_Error_Code=code, X_Error_Message=text or code)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), {key: values[0] for key, values in parse_qs(url.query).items()}
        line = f"{self.command} {path}"
        with self.hub.lock:
            self.hub.requests.append(line + (f" {self.headers['Range']}" if self.headers.get("Range") else ""))
        fault = self.hub.take_fault(line)
        try:
            body = self.read_body(fault if fault and self.command in ("PUT", "POST") else None)
            self.hub.received[line] += len(body)
            if fault and fault.kind == "slow":
                time.sleep(0.3)
            if fault and fault.status:
                raise Answer(fault.status, {"error": "a fault on demand"}, **fault.headers)
            if fault and fault.kind == "away":
                self.close_connection = True
                return
            self.route(path, query, body)
        except Answer as answer:
            self.answer(answer, line, fault)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def read_body(self, fault: Fault | None) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        size = int(self.headers.get("Content-Length") or 0)
        if fault and fault.kind == "cut":
            self.rfile.read(min(size, fault.after))
            raise ConnectionError
        return self.rfile.read(size)

    def answer(self, answer: Answer, line: str, fault: Fault | None) -> None:
        value = answer.value
        data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
        self.send_response(answer.status)
        for key, text in answer.headers.items():
            self.send_header(key, text)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.kind == "flip" and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault and fault.kind == "cut":
            self.wfile.write(data[: fault.after])
            raise ConnectionError
        self.hub.sent[line] += len(data)
        self.wfile.write(data)

    # --- routes ---

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                function(self, body, query, **match.groupdict())
        raise missing("EntryNotFound", text=f"no route for {self.command} {path}")

    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def need_token(self) -> None:
        given = self.headers.get("Authorization")
        if not self.authorised():
            raise Answer(401 if not given else 403, {"error": "Invalid username or password."})

    def repo(self, name: str) -> HubRepo:
        if name in self.hub.moved:
            target = self.path.replace(name, self.hub.moved[name], 1)
            raise Answer(307, None, Location=self.hub.endpoint + target)
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.authorised()):
            raise missing("RepoNotFound", 401 if repo else 404, "Repository not found")
        return repo

    def commit_of(self, repo: HubRepo, revision: str) -> str:
        found = repo.resolve(revision)
        if found is None:
            raise missing("RevisionNotFound", text=f"Invalid rev id: {revision}")
        return found

    def create(self, body: bytes, query: dict[str, str]) -> None:
        self.need_token()
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repos:
            raise Answer(409, {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repos[name] = HubRepo(name, private)
        self.hub.repos[name].commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)})
        raise Answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})

    def validate(self, body: bytes, query: dict[str, str]) -> None:
        raise Answer(200, {"errors": [], "warnings": []})

    def model(self, body: bytes, query: dict[str, str], name: str, revision: str = "main") -> None:
        repo = self.repo(name)
        commit = self.commit_of(repo, revision or "main")
        tree = repo.commits[commit]
        card = tree["README.md"].data.decode() if "README.md" in tree else ""
        parts = card.split("---\n")
        data = yaml.safe_load(parts[1]) if card.startswith("---\n") and len(parts) > 2 else None
        siblings = [{"rfilename": path} for path in tree]
        raise Answer(
            200,
            {"id": name, "modelId": name, "sha": commit, "private": repo.private, "gated": "manual" if repo.gated else False, "tags": []}
            | {"siblings": siblings, "cardData": data, "downloads": 0, "likes": 0},
        )

    def tree(self, body: bytes, query: dict[str, str], name: str, revision: str, path: str = "") -> None:
        repo = self.repo(name)
        tree = repo.commits[self.commit_of(repo, revision)]
        prefix = f"{path.strip('/')}/" if path and path.strip("/") else ""
        raise Answer(200, [self.row(blob, p) for p, blob in tree.items() if p.startswith(prefix)])

    def row(self, blob: Blob, path: str) -> dict[str, Any]:
        row = blob.row(path)
        if self.hub.cas and blob.lfs:
            row["xetHash"] = self.hub.xet_hashes.get(blob.sha256, "0" * 64)
        return row

    def paths_info(self, body: bytes, query: dict[str, str], name: str, revision: str) -> None:
        repo = self.repo(name)
        tree = repo.commits[self.commit_of(repo, revision)]
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        found = [self.row(tree[p], p) for p in paths if p in tree]
        folders = [p for p in paths if p not in tree and any(q.startswith(p + "/") for q in tree)]
        raise Answer(200, found + [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders])

    def preupload(self, body: bytes, query: dict[str, str], name: str, revision: str) -> None:
        self.need_token()
        self.repo(name)
        files = [
            {"path": f["path"], "uploadMode": "lfs" if is_lfs(f["path"], f["size"]) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        raise Answer(200, {"files": files})

    def batch(self, body: bytes, query: dict[str, str], name: str) -> None:
        self.need_token()
        objects, asked = [], json.loads(body)
        for item in asked["objects"]:
            row = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                href = f"{self.hub.endpoint}/lfs/{item['oid']}"
                row["actions"] = {"upload": {"href": href}, "verify": {"href": href + "/verify"}}
            objects.append(row)
        transfer = "xet" if self.hub.cas and "xet" in asked.get("transfers", []) else "basic"
        raise Answer(200, {"transfer": transfer, "objects": objects})

    def lfs_put(self, body: bytes, query: dict[str, str], oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, {"error": "the bytes have another SHA-256"})
        self.hub.objects[oid] = body
        raise Answer(200, {})

    def lfs_verify(self, body: bytes, query: dict[str, str], oid: str) -> None:
        raise Answer(200 if oid in self.hub.objects else 404, {})

    def branch(self, body: bytes, query: dict[str, str], name: str, branch: str) -> None:
        self.need_token()
        repo = self.repo(name)
        if branch in repo.branches:
            raise Answer(409, {"error": "Reference already exists"})
        repo.branches[branch] = repo.branches["main"]
        raise Answer(200, {})

    def commit(self, body: bytes, query: dict[str, str], name: str, revision: str) -> None:
        self.need_token()
        with self.hub.lock:
            repo = self.repo(name)
            parent = self.commit_of(repo, revision)
            lines = [json.loads(line) for line in body.splitlines() if line]
            head = next(line["value"] for line in lines if line["key"] == "header")
            if head.get("parentCommit") not in (None, parent):
                raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
            tree = dict(repo.commits[parent])
            for line in lines:
                self.change(tree, line["key"], line["value"])
            branch = f"refs/pr/{1 + sum(b.startswith('refs/pr/') for b in repo.branches)}" if query.get("create_pr") else revision
            oid = repo.commit(branch, tree)
        url = f"{self.hub.endpoint}/{name}/commit/{oid}"
        pr = f"{self.hub.endpoint}/{name}/discussions/{branch.rpartition('/')[2]}" if query.get("create_pr") else None
        raise Answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": pr, "hookOutput": ""})

    def change(self, tree: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            tree[value["path"]] = Blob(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            data = self.hub.objects.get(value["oid"]) or self.hub.known.get(value["oid"])
            if data is None and self.hub.cas is None:
                raise Answer(400, {"error": f"LFS object {value['oid']} is not there"})
            tree[value["path"]] = Blob(data or b"", True, None if data is not None else (value["oid"], value["size"]))
        elif key == "deletedFile":
            tree.pop(value["path"], None)

    def resolve(self, body: bytes, query: dict[str, str], name: str, revision: str, path: str) -> None:
        repo = self.repo(name)
        if repo.gated:
            raise missing("GatedRepo", 403, "Access to this model is restricted")
        commit = self.commit_of(repo, revision)
        blob = repo.commits[commit].get(path)
        if blob is None:
            raise missing("EntryNotFound", text=f"{path} does not exist")
        headers = {"X_Repo_Commit": commit, "ETag": f'"{blob.sha256 if blob.lfs else blob.oid}"', "Accept_Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X_Linked_ETag": f'"{blob.sha256}"', "X_Linked_Size": str(len(blob.data))}
            if self.hub.cas:
                headers |= {
                    "X_Xet_Hash": self.hub.xet_hashes.get(blob.sha256, "0" * 64),
                    "X_Xet_Refresh_Route": f"{self.hub.endpoint}/api/models/{name}/xet-read-token/main",
                }
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match:
            first, last = int(match[1]), min(int(match[2] or len(blob.data)), len(blob.data) - 1)
            raise Answer(206, blob.data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(blob.data)}", **headers)
        raise Answer(200, blob.data, **headers, **({"Content_Length": str(len(blob.data))} if self.command == "HEAD" else {}))

    # --- Xet ---

    def xet_token(self, body: bytes, query: dict[str, str], name: str, what: str) -> None:
        if what == "write":
            self.need_token()
        if self.hub.cas is None:
            raise missing("EntryNotFound", text="no Xet here")
        url, end = f"local://{self.hub.cas}", int(time.time()) + 3600
        headers = {"X_Xet_Cas_Url": url, "X_Xet_Access_Token": "xet", "X_Xet_Token_Expiration": str(end)}
        raise Answer(200, {"accessToken": "xet", "exp": end, "casUrl": url}, **headers)


NAME = r"(?P<name>[^/]+/[^/]+)"
REV = r"(?P<revision>refs/pr/\d+|[^/]+)"

ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{NAME}/preupload/{REV}", Handler.preupload),
    ("POST", f"/api/models/{NAME}/commit/{REV}", Handler.commit),
    ("POST", f"/api/models/{NAME}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", f"/api/models/{NAME}/paths-info/{REV}", Handler.paths_info),
    ("GET", f"/api/models/{NAME}/tree/{REV}(?P<path>/.*)?", Handler.tree),
    ("GET", f"/api/models/{NAME}/xet-(?P<what>read|write)-token/.*", Handler.xet_token),
    ("GET", f"/api/models/{NAME}(?:/revision/{REV})?", Handler.model),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", Handler.lfs_verify),
    ("GET HEAD", f"/{NAME}/resolve/{REV}/(?P<path>.+)", Handler.resolve),
]
