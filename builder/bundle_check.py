"""What may lie in a bundle folder: plain names and files, no archives, no secrets, no more than Kaggle takes.

Owns the check of a finished folder, before it is put in place and again before an upload. Does not check
the two metadata files (metadata) and repairs nothing: whatever it refuses has to be removed by its owner.
"""
import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from kernel.errors import UploadError
from kernel.spec import FILE_NAME, Attached, FileEntry, Manifest, load_manifest

MAX_FILES = 50  # Kaggle's limit of files at the top level of a dataset.
MAX_BYTES = 200_000_000_000  # Kaggle's limit of a dataset.
SUFFIXES = (".json", ".whl", ".safetensors", ".onnx")
METADATA = "dataset-metadata.json"  # The client reads it and never uploads it.
RESERVED = ("datapackage.json", "kernel-metadata.json", "model-metadata.json", "model-instance-metadata.json")
MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7-zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"Rar!": "rar",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
}
PATTERNS = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a Kaggle key": (rb"[\"']key[\"']\s*:\s*[\"'][0-9a-f]{32}[\"']|KAGGLE_KEY\s*[=:]\s*[\"']?[0-9a-f]{32}"
                     rb"|\bKGAT_[0-9A-Za-z]{16,}"),
    "an AWS key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": rb"\bgh[pousr]_[0-9A-Za-z]{36}|\bgithub_pat_[0-9A-Za-z_]{22,}",
    "a Hugging Face token": rb"\bhf_[0-9A-Za-z]{30,}",
    "a Google key": rb"\bAIza[0-9A-Za-z_-]{35}\b",
    "a Slack token": rb"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "an API key": rb"\bsk-[0-9A-Za-z_-]{32,}",
    "a path of your home folder": rb"(?:/home/|/Users/|[A-Za-z]:\\\\?Users\\\\?)[A-Za-z0-9._-]+",
}
SECRETS = {what: re.compile(pattern) for what, pattern in PATTERNS.items()}
HEAD_BYTES = 1 << 20  # Of a safetensors file only the header is text; a graph may hold text anywhere.


def check_secrets(name: str, data: bytes) -> None:
    """Nothing, when no secret is in the bytes.

    Raises  UploadError naming file and kind
    """
    for what, pattern in SECRETS.items():
        match = pattern.search(data)
        if match:
            start = match.group()[:24].decode("latin-1")
            raise UploadError(
                f"{name}: holds {what}: {start!r}...; remove it, a dataset can be read by others"
            )


def _find_archive(data: bytes) -> str | None:
    """What kind of archive or pickle these bytes begin, None for neither."""
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)


def _check_name(path: Path) -> None:
    name = path.name
    if path.is_symlink():
        raise UploadError(f"{name}: a link; the client may not follow it, put the file itself there")
    if path.is_dir():
        raise UploadError(
            f"{name}/: a folder; `kaggle datasets create` drops folders (--dir-mode skip), "
            "keep the bundle flat"
        )
    if not path.is_file():
        raise UploadError(f"{name}: no regular file")
    if name in RESERVED or name.startswith("dataset-cover-image."):
        raise UploadError(f"{name}: a reserved name; the client reads it and never uploads it")
    if not FILE_NAME.match(name) or path.suffix not in SUFFIXES:
        raise UploadError(
            f"{name}: not a file of a bundle; plain ASCII names ending in {', '.join(SUFFIXES)} only (Kaggle "
            "unpacks archives and .pt files, and anything else may be a secret)"
        )


def _check_bytes(path: Path) -> None:
    """No archive and no secret in a file; wheels are archives and have a check of their own."""
    if path.suffix == ".whl":
        return
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    kind = _find_archive(head)
    if kind:
        raise UploadError(f"{path.name}: its bytes are {kind}; Kaggle would unpack it, or it holds code")
    check_secrets(path.name, head if path.suffix == ".safetensors" else path.read_bytes())


def _check_wheel(path: Path) -> None:
    """Our own wheel: no secret and no archive inside."""
    with zipfile.ZipFile(path) as wheel:
        for info in wheel.infolist():
            data = wheel.read(info)
            kind = _find_archive(data)
            if kind:
                raise UploadError(
                    f"{path.name}: {info.filename} is {kind}; nested archives do not survive on Kaggle"
                )
            check_secrets(f"{path.name}: {info.filename}", data)


def check_folder(folder: Path) -> None:
    """Nothing, when the folder can be uploaded as it is.

    Raises  UploadError naming the file and the rule
    """
    paths = sorted(folder.iterdir())
    if len(paths) > MAX_FILES:
        raise UploadError(
            f"{folder.name}: {len(paths)} files; a dataset takes {MAX_FILES} at the top level, "
            "put fewer members or fewer wheels into it"
        )
    names = [path.name.casefold() for path in paths]
    for path in paths:
        _check_name(path)
        if names.count(path.name.casefold()) > 1:
            raise UploadError(f"{path.name}: two names differ only in case")
        _check_bytes(path)
    total = sum(path.stat().st_size for path in paths)
    if total > MAX_BYTES:
        raise UploadError(f"{folder.name}: {total} bytes; a dataset takes {MAX_BYTES}")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_bundle(folder: Path) -> Manifest:
    """Manifest of a finished bundle whose every file is listed, whole and free of secrets.

    Raises  UploadError, or SpecError for a manifest that cannot be read
    """
    check_folder(folder)
    if not (folder / "manifest.json").is_file():
        raise UploadError(f"{folder}: no manifest.json; build the bundle first")
    manifest = load_manifest((folder / "manifest.json").read_bytes())
    listed = {**manifest.files, manifest.wheel.file: manifest.wheel.entry}
    check_listed(folder, listed, {"manifest.json", METADATA})
    _check_wheel(folder / manifest.wheel.file)
    return manifest


def check_listed(folder: Path, listed: Mapping[str, FileEntry | Attached], besides: set[str]) -> None:
    """Nothing, when the folder holds exactly these files, with these bytes, and perhaps those of `besides`.

    Raises  UploadError naming the file
    """
    present = {path.name for path in folder.iterdir()} - besides
    for name in sorted(present - set(listed)):
        raise UploadError(f"{name}: not in the manifest; remove it or build again")
    for name in sorted(set(listed) - present):
        raise UploadError(f"{name}: in the manifest but not in the folder; build again")
    for name, entry in listed.items():
        if (folder / name).stat().st_size != entry.bytes or file_sha256(folder / name) != entry.sha256:
            raise UploadError(f"{name}: its bytes differ from the manifest; build again")
