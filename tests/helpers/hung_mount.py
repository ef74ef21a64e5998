"""A mount that stops answering: a FUSE server of our own that serves a folder and never answers one request.

Owns the server, in a process of its own, and `hung_mount`, which mounts it. A process that waits for such an
answer cannot be killed, not even by SIGKILL, until the server ends. Needs /dev/fuse and the right to mount.

Source: the kernel's include/uapi/linux/fuse.h, protocol 7.31.
"""
from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from tests.helpers.guard_runs import wait_for

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH = 1, 2, 3, 14, 15, 18, 25
INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 26, 27, 28, 29, 36, 42
OPERATIONS = {"look up": LOOKUP, "open": OPEN, "read": READ, "list": READDIR}
HEADER = struct.Struct("<IIQQIIIHH")
DIRECT_IO = 1
MNT_DETACH = 2
LONGEST = 1 << 20  # bytes of a request


@cache
def can_mount() -> bool:
    """True where this process may mount a FUSE server."""
    return os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)


needs_fuse = pytest.mark.skipif(not can_mount(), reason="no /dev/fuse, or no right to mount, on this machine")


@contextmanager
def hung_mount(source: Path, target: Path, operation: str, name: str) -> Iterator[None]:
    """`source` mounted at `target`; one `operation` on whatever is called `name` is never answered.

    operation  a key of OPERATIONS
    """
    target.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.helpers.hung_mount", str(source), str(target), operation, name]
    server = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None and server.stdout.read(1) == b"!", "the server did not mount"
        yield
    finally:
        server.kill()  # its end frees whoever waits
        server.communicate()
        ctypes.CDLL(None).umount2(os.fsencode(target), MNT_DETACH)
        wait_for(lambda: not os.path.ismount(target))


class Server:
    """Serves `source`, read-only, to the kernel behind `device`."""

    def __init__(self, device: int, source: Path, operation: int, name: str) -> None:
        self.device = device
        self.paths = {1: source}  # node id -> path
        self.hung = (operation, name)

    def serve(self) -> None:
        """Answer requests until the mount is gone."""
        while True:
            request = os.read(self.device, LONGEST)
            _, opcode, unique, node, *_ = HEADER.unpack_from(request)
            if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                continue  # these have no answer
            body = request[HEADER.size:]
            path = self.paths[node] if node else Path()
            if opcode == LOOKUP:
                path = path / os.fsdecode(body.split(b"\0")[0])
            if (opcode, path.name) == self.hung:
                continue
            try:
                answer, failure = self.answer(opcode, path, body), 0
            except OSError as error:
                answer, failure = b"", -(error.errno or errno.EIO)
            os.write(self.device, struct.pack("<IiQ", 16 + len(answer), failure, unique) + answer)

    def answer(self, opcode: int, path: Path, body: bytes) -> bytes:
        """Bytes of the answer. Raises OSError, whose number becomes the answer's."""
        if opcode == INIT:
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 1 << 17, 1, 0, 0, 0)
        if opcode == LOOKUP:
            facts = self.describe(path)
            node = next((n for n, known in self.paths.items() if known == path), len(self.paths) + 1)
            self.paths[node] = path
            return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + facts
        if opcode == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self.describe(path)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<QII", 0, DIRECT_IO, 0)
        if opcode in (READ, READDIR):
            _, offset, size = struct.unpack_from("<QQI", body)
            data = path.read_bytes() if opcode == READ else self.entries(path)
            return data[offset:offset + size]
        if opcode in (RELEASE, RELEASEDIR, FLUSH):
            return b""
        raise OSError(errno.ENOSYS, "not served")

    def describe(self, path: Path) -> bytes:
        found = path.stat()
        kind = stat.S_IFDIR | 0o755 if stat.S_ISDIR(found.st_mode) else stat.S_IFREG | 0o644
        return struct.pack("<QQ44xII12xII", found.st_ino, found.st_size, kind, 1, 4096, 0)

    def entries(self, folder: Path) -> bytes:
        """The folder's names as the kernel reads them; each carries the offset of the next."""
        out = b""
        for path in sorted(folder.iterdir()):
            name = os.fsencode(path.name)
            size = -(-(24 + len(name)) // 8) * 8
            kind = 4 if path.is_dir() else 8
            entry = struct.pack("<QQII", path.stat().st_ino, len(out) + size, len(name), kind) + name
            out += entry.ljust(size, b"\0")
        return out


def main(source: str, target: str, operation: str, name: str) -> None:
    """Mount, say so with one byte, serve."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(b"hung", os.fsencode(target), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)
    os.write(1, b"!")
    Server(device, Path(source), OPERATIONS[operation], name).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
