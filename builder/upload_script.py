"""The upload as shell commands, to be pasted as one block where this program has no client.

Owns the text. It waits and stops as `--upload` does (upload): the client's exit code is 0 after some
refusals, so that its own lines decide here as well. For any POSIX shell, and without comments: zsh takes none
at its prompt.
"""
import shlex
from pathlib import Path

STATES = """\
  case $now in
    *'"failed"'*|*'"deleted"'*) echo 'Kaggle could not process this version' >&2; exit 1;;
    *'"ready"'*) [ "$(digits "$now")" -gt "0$(digits "$before")" ] && break;;
  esac"""


def upload_lines(out: Path, dataset: str, part: str = "bundle") -> list[str]:
    """Create or version, then wait until the new version is the current one.

    part  folder of `out` that is uploaded
    """
    bundle = shlex.quote(str(out.resolve() / part))
    return [
        "digits() { printf %s \"$1\" | tr -dc 0-9; }",
        f"before=$(kaggle datasets status {dataset} --format json 2>/dev/null) || before=",
        'if [ -n "$before" ]; then',
        f"  said=$(kaggle datasets version -p {bundle} -m 'new bundle')",
        "else",
        f"  said=$(kaggle datasets create -p {bundle})",
        "fi",
        'echo "$said"',
        "case $said in *'Upload unsuccessful: '*) exit 1;; *'is being created'*) ;; *) exit 1;; esac",
        "while :; do",
        "  sleep 10",
        f"  now=$(kaggle datasets status {dataset} --format json)",
        '  echo "$now"',
        *STATES.split("\n"),
        "done",
    ]


def push_lines(out: Path) -> list[str]:
    """Push; the version's number is kept for the submission."""
    return [
        f"said=$(kaggle kernels push -p {shlex.quote(str(out.resolve() / 'push'))})",
        'echo "$said"',
        "case $said in *'are not valid dataset'*|*'are not valid competition'*) exit 1;; esac",
        "version=$(echo \"$said\" | sed -n 's/^Kernel version \\([0-9]*\\) successfully pushed.*/\\1/p')",
        '[ -n "$version" ]',
    ]


def submit_lines(kernel: str, competition: str) -> list[str]:
    """Wait until the kernel is complete, then submit its version; wait for the score where the client can."""
    return [
        "while :; do",
        "  sleep 30",
        f"  now=$(kaggle kernels status {kernel})",
        '  echo "$now"',
        "  case $now in *Status.COMPLETE*) break;; *Status.ERROR*|*Status.CANCEL*) exit 1;; esac",
        "done",
        "wait=",
        "if kaggle competitions submit --help | grep -e --wait >/dev/null; then wait=--wait; fi",
        f"kaggle competitions submit {competition} -k {kernel} -v \"$version\" -f submission.csv "
        "-m hourglass $wait",
    ]


def join(client: str, *parts: list[str]) -> list[str]:
    """One block in a shell of its own that ends at the first failure."""
    lines = ["(", "set -e", *(line for part in parts for line in part), ")"]
    named = f"kaggle() {{ {shlex.quote(client)} \"$@\"; }}"
    return lines if client == "kaggle" else [*lines[:2], named, *lines[2:]]
