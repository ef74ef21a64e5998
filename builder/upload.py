"""The upload through the real `kaggle` client where there is one, else the commands in print.

Owns create-or-version, waiting until the dataset is ready, and the push. Everything is checked again first,
because a file may have been put into the folder since the build. Reads no key: the client does that.
"""
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kernel.errors import UploadError
from kernel.pin import read_constant
from kernel.spec import loads_json

from . import bundle_check, metadata, notebook, pushed
from .assembly import PLACEHOLDER_OWNER
from .commands import Run, run_command

READY_SECONDS = 1800  # Kaggle takes minutes to process a large dataset.
POLL_SECONDS = 10
COMPLAINTS = ("not valid", "error")  # The client prints them, sometimes with exit code 0.
KEYS = ("KAGGLE_KEY", "KAGGLE_API_TOKEN")
KEY_FILES = (".kaggle/kaggle.json", ".kaggle/access_token", ".config/kaggle/kaggle.json")


def list_commands(out: Path, owner: str, slug: str, competition: str | None) -> list[str]:
    """Shell commands that upload, wait, push and submit, in order."""
    bundle = out / "bundle"
    return [
        f"kaggle datasets status {owner}/{slug} >/dev/null 2>&1 \\",
        f"  && kaggle datasets version -p {bundle} -m 'new bundle' \\",
        f"  || kaggle datasets create -p {bundle}",
        f"kaggle datasets status {owner}/{slug}      # wait for 'ready': "
        "a kernel pushed earlier sees the previous version",
        f"kaggle kernels push -p {out / 'push'}",
        f"kaggle kernels status {owner}/{slug}       # wait for COMPLETE",
        f"kaggle competitions submit {competition or 'COMPETITION'} -k {owner}/{slug} "
        "-v VERSION -f submission.csv -m 'hourglass'",
    ]


def find_client(environment: Mapping[str, str], home: Path) -> tuple[str | None, str]:
    """(path of the configured client or None, why not); key files are only looked for, never opened."""
    client = shutil.which("kaggle", path=environment.get("PATH"))
    if client is None:
        return None, "the kaggle client is not installed (pip install kaggle)"
    has_key = any(environment.get(key) for key in KEYS)
    if not has_key and not any((home / name).is_file() for name in KEY_FILES):
        return None, "the kaggle client is not configured (kaggle.com/settings, API)"
    return client, ""


def check(out: Path) -> tuple[str, str, str | None]:
    """(owner, slug, competition) of a build that can be uploaded as it lies there.

    Raises  UploadError naming file or field and rule
    """
    manifest = bundle_check.check_bundle(out / "bundle")
    dataset = loads_json((out / "bundle" / bundle_check.METADATA).read_bytes(), bundle_check.METADATA)
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
    bundle_check.check_secrets(code.name, source.encode())
    value = read_constant(notebook.read_script(code) if code.suffix == ".ipynb" else source)
    digest = bundle_check.file_sha256(out / "bundle" / "manifest.json")
    if value is None or value["manifest_sha256"] != digest:
        raise UploadError(f"{code.name}: belongs to another bundle than {manifest.bundle}; build again")
    pushed.check_unchanged(code)
    competitions = kernel.get("competition_sources") or [None]
    return owner, slug, competitions[0]


def _do(run: Run, command: Sequence[str], say: Callable[[str], None]) -> None:
    """Runs a client command and shows what it printed.

    Raises  UploadError when it failed or complained
    """
    done = run(command)
    text = (done.stdout + done.stderr).strip()
    say("$ " + " ".join(command[:3]) + ("\n" + text if text else ""))
    if done.returncode != 0 or any(word in text.lower() for word in COMPLAINTS):
        raise UploadError(f"{' '.join(command[:3])}: {text[-400:] or f'exit code {done.returncode}'}")


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
    run: Run = run_command,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """True when dataset and kernel were uploaded; False when only the commands were printed.

    Raises  UploadError
    """
    owner, slug, competition = check(out)
    commands = list_commands(out, owner, slug, competition)
    client, why = find_client(environment, home)
    if client is None:
        say(f"{why}; these are the commands:\n\n" + "\n".join(commands))
        return False
    exists = run([client, "datasets", "status", f"{owner}/{slug}"]).returncode == 0
    action = ["version", "-m", "new bundle"] if exists else ["create"]
    _do(run, [client, "datasets", *action, "-p", str(out / "bundle")], say)
    _wait_ready(run, client, f"{owner}/{slug}", sleep)
    _do(run, [client, "kernels", "push", "-p", str(out / "push")], say)
    say("\n".join(["pushed; when it is complete, submit with:", *commands[-2:]]))
    return True
