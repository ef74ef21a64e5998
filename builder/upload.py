"""The upload through the real `kaggle` client, where it is installed and configured; the commands in print
elsewhere.

Owns create-or-version, waiting until the dataset is ready, and the push. Everything is checked again first: a
file may have been put into the folder since the build. Reads no key: the client does that.
"""
from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kernel.errors import UploadError
from kernel.pin import read_constant
from kernel.spec import loads_json

from . import contents, metadata, push
from .assembly import PLACEHOLDER_OWNER

READY_SECONDS = 1800  # processing of a large dataset takes minutes
POLL_SECONDS = 10
COMPLAINTS = ("not valid", "error")  # printed by the client, sometimes with exit code 0
KEYS = ("KAGGLE_KEY", "KAGGLE_API_TOKEN")
KEY_FILES = (".kaggle/kaggle.json", ".kaggle/access_token", ".config/kaggle/kaggle.json")
Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def find_client(environment: Mapping[str, str], home: Path) -> tuple[str | None, str]:
    """(path of the configured client or None, why not); key files are only looked for, never opened."""
    client = shutil.which("kaggle", path=environment.get("PATH"))
    if client is None:
        return None, "the kaggle client is not installed (pip install kaggle)"
    if not any(environment.get(key) for key in KEYS) and not any(
        (home / name).is_file() for name in KEY_FILES
    ):
        return None, "the kaggle client is not configured (kaggle.com/settings, API)"
    return client, ""


def check(out: Path) -> tuple[str, str, str | None]:
    """(owner, slug, competition) of a build that can be uploaded as it lies there.

    Raises  UploadError naming file or field and rule
    """
    manifest = contents.check_bundle(out / "bundle")
    dataset = loads_json((out / "bundle" / contents.METADATA).read_bytes(), contents.METADATA)
    kernel = loads_json((out / "push" / "kernel-metadata.json").read_bytes(), "kernel-metadata.json")
    metadata.check_dataset(dataset, out / "bundle")
    metadata.check_kernel(kernel, out / "push")
    owner, slug = metadata.check_id(dataset["id"])
    if owner == PLACEHOLDER_OWNER:
        raise UploadError(
            f"id: {dataset['id']!r}; build again with --owner YOUR_KAGGLE_NAME (make upload OWNER=...)"
        )
    code = out / "push" / kernel["code_file"]
    source = code.read_text(encoding="utf-8")
    contents.check_secrets(code.name, source.encode())
    if code.suffix == ".ipynb":
        contents.check_notebook(code)
        source = "".join(json.loads(source)["cells"][0]["source"]).partition("\n")[2]
    value = read_constant(source)
    if value is None or value["manifest_sha256"] != contents.file_sha256(out / "bundle" / "manifest.json"):
        raise UploadError(f"{code.name}: belongs to another bundle than {manifest.bundle}; build again")
    competitions = kernel.get("competition_sources") or [None]
    return owner, slug, competitions[0]


def _do(run: Run, command: Sequence[str], say: Callable[[str], None]) -> str:
    """Output of a client command.

    Raises  UploadError when it failed or complained
    """
    done = run(command)
    text = (done.stdout + done.stderr).strip()
    say("$ " + " ".join(command[:3]) + ("\n" + text if text else ""))
    if done.returncode != 0 or any(word in text.lower() for word in COMPLAINTS):
        raise UploadError(f"{' '.join(command[:3])}: {text[-400:] or f'exit code {done.returncode}'}")
    return text


def _wait_ready(run: Run, client: str, name: str, sleep: Callable[[float], None]) -> None:
    for _ in range(READY_SECONDS // POLL_SECONDS):
        if "ready" in run([client, "datasets", "status", name]).stdout.lower():
            return
        sleep(POLL_SECONDS)
    raise UploadError(
        f"{name}: not ready after {READY_SECONDS} s; look at it on kaggle.com, then run `kaggle kernels push`"
    )


def upload(
    out: Path,
    environment: Mapping[str, str],
    *,
    home: Path,
    run: Run = _run,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """True when dataset and kernel were uploaded; False when only the commands were printed.

    Raises  UploadError
    """
    owner, slug, competition = check(out)
    client, why = find_client(environment, home)
    if client is None:
        say(f"{why}; these are the commands:\n\n" + "\n".join(push.commands(out, owner, slug, competition)))
        return False
    exists = run([client, "datasets", "status", f"{owner}/{slug}"]).returncode == 0
    folder = str(out / "bundle")
    _do(run, [client, "datasets", "version", "-p", folder, "-m", "new bundle"] if exists
        else [client, "datasets", "create", "-p", folder], say)
    _wait_ready(run, client, f"{owner}/{slug}", sleep)
    _do(run, [client, "kernels", "push", "-p", str(out / "push")], say)
    say(
        "\n".join(
            ["pushed; when it is complete, submit with:", *push.commands(out, owner, slug, competition)[-2:]]
        )
    )
    return True
