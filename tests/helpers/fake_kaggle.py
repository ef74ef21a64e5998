"""Kaggle's API on the loopback address, for the unmodified `kaggle` client.

Owns the server and the environment that leads a client to it: the client's own development mode
(KAGGLE_API_ENVIRONMENT=LOCALHOST) calls http://localhost, and the usual proxy variable takes that to a free
port. Nothing of the client is replaced. A rehearsal's mount of the same name is another thing:
kernel/rehearsal/fake_kaggle.py.
Source of addresses, fields and states: the packages kaggle 2.2.4 and 2.2.5, kagglesdk 0.1.37 and 0.1.38.
"""
from __future__ import annotations

import base64
import json
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

USER = "someone"
KEY = "0" * 32
TOKEN = "KGAT_fake"
REFRESH = "refresh_fake"
BASIC = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()


@dataclass(kw_only=True)
class Dataset:
    """One dataset; `looks` are the states still to be shown before the newest version is the current one."""

    title: str
    is_private: bool
    versions: list[dict[str, bytes]] = field(default_factory=list)
    current: int = 0
    looks: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Fault:
    """What happens to a call instead of its answer, or after its work when `after` is set.

    status 0 drops the connection; `body` replaces the answer of a call that is let through otherwise
    """

    status: int = 0
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    after: bool = False


class KaggleServer:
    """The server's memory. Calls are counted by method name, faults are used up in order.

    processing   states that the next new version goes through, one per look, before it is the current one
    """

    def __init__(self) -> None:
        self.datasets: dict[str, Dataset] = {}
        self.kernels: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.submissions: list[dict[str, Any]] = []
        self.blobs: dict[str, bytes] = {}
        self.names: dict[str, tuple[str, int]] = {}
        self.calls: list[str] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.processing: list[str] = ["BLOBS_RECEIVED"]
        self.kernel_states: list[str] = ["COMPLETE"]
        self.taken: set[str] = set()
        self.port = 0
        self.lock = threading.Lock()

    def fail(self, method: str, times: int = 1, **fault: Any) -> None:
        """The next `times` calls of `method` meet this fault."""
        self.faults[method] += [Fault(**fault) for _ in range(times)]

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The variables that lead a client here; `home` holds its login, if any."""
        return {
            "HOME": str(home),
            "TMPDIR": str(home.parent),  # Not the home folder: the client keeps uploads in TMPDIR/.kaggle.
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": f"http://127.0.0.1:{self.port}",
            "no_proxy": "127.0.0.1",
            **more,
        }

    # The API's methods: a JSON object in, a JSON object out.

    def IntrospectToken(self, sent: dict[str, Any]) -> dict[str, Any]:
        known = sent.get("token") == TOKEN
        return {"active": known, "username": USER if known else ""}

    def GenerateAccessToken(self, sent: dict[str, Any]) -> dict[str, Any]:
        if sent.get("refreshToken") != REFRESH:
            raise Refused(401, "Unauthenticated")
        return {"token": TOKEN, "expiresIn": 3600, "userName": USER}

    def _dataset(self, sent: dict[str, Any]) -> Dataset:
        name = f"{sent['ownerSlug']}/{sent['datasetSlug']}"
        if name not in self.datasets:
            raise Refused(404, f"Dataset {name} was not found")
        return self.datasets[name]

    def GetDatasetStatus(self, sent: dict[str, Any]) -> dict[str, Any]:
        dataset = self._dataset(sent)
        if not dataset.looks:
            dataset.current = len(dataset.versions)
            return {"status": "READY"}
        state = dataset.looks[0] if dataset.looks[0] in ("FAILED", "DELETED") else dataset.looks.pop(0)
        return {"status": state}

    def GetDataset(self, sent: dict[str, Any]) -> dict[str, Any]:
        dataset = self._dataset(sent)
        return {"title": dataset.title, "currentVersionNumber": dataset.current}

    def GetDatasetMetadata(self, sent: dict[str, Any]) -> dict[str, Any]:
        dataset = self._dataset(sent)
        info = {"datasetId": 7, "datasetSlug": sent["datasetSlug"], "ownerUser": sent["ownerSlug"],
                "title": dataset.title, "isPrivate": dataset.is_private, "licenses": [{"name": "other"}],
                "keywords": [], "collaborators": [], "data": [], "usabilityRating": 0.25}
        return {"info": info}

    def UpdateDatasetMetadata(self, sent: dict[str, Any]) -> dict[str, Any]:
        dataset = self._dataset(sent)
        dataset.settings = sent["settings"]
        dataset.is_private = bool(sent["settings"].get("isPrivate"))
        return {"errors": []}

    def StartBlobUpload(self, sent: dict[str, Any]) -> dict[str, Any]:
        token = f"blob{len(self.names)}"
        self.names[token] = (sent["name"], int(sent.get("contentLength", 0)))
        return {"token": token, "createUrl": f"http://127.0.0.1:{self.port}/upload/{token}"}

    def _files(self, files: list[dict[str, Any]]) -> dict[str, bytes]:
        return {self.names[each["token"]][0]: self.blobs[each["token"]] for each in files}

    def CreateDataset(self, sent: dict[str, Any]) -> dict[str, Any]:
        name = f"{sent['ownerSlug']}/{sent['slug']}"
        if name in self.datasets or sent["title"] in self.taken:
            return {"status": "error", "error": f'The requested title "{sent["title"]}" is already in use by '
                                                "a dataset. Please choose another title."}
        self.datasets[name] = Dataset(
            title=sent["title"],
            is_private=sent["isPrivate"],
            versions=[self._files(sent["files"])],
            looks=list(self.processing),
        )
        return {"ref": name, "url": f"https://www.kaggle.com/datasets/{name}", "status": "ok"}

    def CreateDatasetVersion(self, sent: dict[str, Any]) -> dict[str, Any]:
        dataset = self._dataset(sent)
        dataset.versions.append(self._files(sent["body"]["files"]))
        dataset.looks = list(self.processing)
        name = f"{sent['ownerSlug']}/{sent['datasetSlug']}"
        return {"ref": name, "url": f"https://www.kaggle.com/datasets/{name}", "status": "ok"}

    def SaveKernel(self, sent: dict[str, Any]) -> dict[str, Any]:
        versions = self.kernels[sent["slug"]]
        versions.append({**sent, "saw": {source: self.datasets[source].current
                                         for source in sent.get("datasetDataSources", [])
                                         if source in self.datasets}})
        missing = [each for each in sent.get("datasetDataSources", []) if each not in self.datasets]
        return {"ref": sent["slug"], "url": f"https://www.kaggle.com/code/{sent['slug']}",
                "versionNumber": len(versions), "invalidDatasetSources": missing}

    def GetKernelSessionStatus(self, sent: dict[str, Any]) -> dict[str, Any]:
        state = self.kernel_states.pop(0) if len(self.kernel_states) > 1 else self.kernel_states[0]
        return {"status": state, "failureMessage": "it broke" if state == "ERROR" else None}

    def CreateCodeSubmission(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.submissions.append(sent)
        return {"message": "Successfully submitted", "ref": len(self.submissions)}

    def GetSubmission(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"ref": sent["ref"], "status": "COMPLETE", "publicScore": "0.75"}

    def GetSubmissionLimits(self, sent: dict[str, Any]) -> dict[str, Any]:
        return {"numAllowedNow": 4}


class Refused(Exception):
    """An answer with an HTTP status and Kaggle's JSON body for it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


OPEN = ("IntrospectToken", "GenerateAccessToken")  # Asked with no login.


class Handler(BaseHTTPRequestHandler):
    """One connection; a client behind a proxy variable names the whole address in its request line."""

    protocol_version = "HTTP/1.1"
    kaggle: KaggleServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what was asked is in `KaggleServer.calls`."""

    def _drop(self) -> None:
        """Reset the connection, as a broken network does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        sent = json.loads(self._read() or b"{}")
        found = re.search(r"/api/v1/[\w.]+/(\w+)$", self.path)
        method = found[1] if found else ""
        kaggle = self.kaggle
        with kaggle.lock:
            kaggle.calls.append(method)
            fault = kaggle.faults[method].pop(0) if kaggle.faults[method] else None
            try:
                if fault and not fault.after and fault.body is None:
                    raise Refused(fault.status, fault.message, fault.headers)
                if method not in OPEN and self.headers.get("Authorization") not in (BASIC, f"Bearer {TOKEN}"):
                    raise Refused(401, "Unauthenticated")
                if fault and fault.body is not None:
                    answer = fault.body
                else:
                    answer = getattr(kaggle, method)(sent)
                if fault and fault.after:
                    raise Refused(fault.status, fault.message, fault.headers)
            except Refused as error:
                if error.status == 0:
                    self._drop()
                    return
                self._answer(error.status, {"code": error.status, "message": str(error)}, error.headers)
                return
        self._answer(200, answer)

    def do_PUT(self) -> None:
        """A blob: its bytes, or (with a range of "*") the question how much of it has arrived."""
        token = self.path.rpartition("/")[2]
        kaggle = self.kaggle
        data = self._read()
        place = re.match(r"bytes (?:\*|(\d+)-\d+)/\d+", self.headers.get("Content-Range") or "bytes 0-0/0")
        with kaggle.lock:
            kaggle.calls.append("upload")
            fault = kaggle.faults["upload"].pop(0) if kaggle.faults["upload"] else None
            if place and place[1] is not None:
                kept = data[: len(data) // 2] if fault else data
                kaggle.blobs[token] = kaggle.blobs.get(token, b"")[: int(place[1])] + kept
            if fault:
                return self._drop() if fault.status == 0 else self._answer(fault.status, {})
            whole = len(kaggle.blobs.setdefault(token, b"")) == kaggle.names[token][1]
        if whole:
            return self._answer(200, {})
        seen = len(kaggle.blobs[token])
        return self._answer(308, {}, {"Range": f"bytes=0-{seen - 1}"} if seen else {})


@contextmanager
def serve() -> Iterator[KaggleServer]:
    """A server on a free port of the loopback address, until the block ends."""
    kaggle = KaggleServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"kaggle": kaggle}))
    server.daemon_threads = True
    kaggle.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield kaggle
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
