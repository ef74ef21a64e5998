"""The `kaggle` client that is installed: where it is, whether it is logged in, and what its words mean.

Owns running it, reading its result lines, and what to do after each refusal. The client alone reads keys: it
is asked, its key files are not looked at. Which command comes when is upload's.
Source of every line that is compared: the packages kaggle 2.2.4 and 2.2.5.
"""
import json
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel.errors import UploadError

from .commands import clean_lines, watch_command

BESIDE = Path(sys.executable).parent
ASK_SECONDS = 120.0  # A question; the client itself has no limit.
LOUD = ("VERBOSE", "VERBOSE_OUTPUT")  # With these the client prints its token.
RETRY = "Request failed: "  # The client tries again by itself; the end of its output says how that went.
NEWS = ("Starting upload", "Upload successful", "Warning: ", RETRY)
# The client ends with code 0 after these.
REFUSALS = re.compile(
    r"(Dataset creation error|Dataset version creation error|Kernel push error|Upload unsuccessful): ?"
    r"|The following are not valid (dataset|competition|kernel|model) sources"
)
DATASET_DONE = re.compile(
    r"(Your (private|public) Dataset|Dataset version) is being created\."
    r"|The following are not valid tags and could not be added to the dataset"
)
KERNEL_DONE = re.compile(r"Kernel version (?:(\d+) )?successfully pushed\.")
NO_LOGIN = re.compile(
    r"Authentication required to call the Kaggle API|Unauthenticated|Unauthorized|\b401 Client Error"
)
EXPIRED = "Invalid credentials!"
IN_USE = re.compile(r"already in use")
NOT_THERE = re.compile(r"\b404 Client Error|not found", re.IGNORECASE)
TOO_OLD = re.compile(r"unrecognized arguments: --format")
PAUSE = r"\b429 Client Error|Too Many Requests|rate limit"
NETWORK = (
    r"Max retries exceeded|Connection ?(?:aborted|refused|reset|Error)|timed out|RemoteDisconnected"
    r"|\b50[0234] Server Error|Service Unavailable|Bad Gateway|Internal Server Error|Kaggle's side"
)
PASSING = re.compile(f"{PAUSE}|{NETWORK}", re.IGNORECASE)
LOGIN = "log in with `kaggle auth login`, or see kaggle.com/settings, API"
ADVICE = (  # The first that fits.
    ("already in use", "build again with another --slug (and --title), or give one to this command"),
    (PAUSE, "Kaggle asks for a pause: wait some minutes, then run this command again"),
    (NETWORK, "see whether kaggle.com can be reached from here, then run this command again"),
    (
        "quota|session count|storage|exceed",
        "`kaggle quota` shows which hours are left and when new ones come; storage is on kaggle.com/settings "
        "and running sessions are on kaggle.com/code: wait or free some, then run this command again",
    ),
    (
        r"\b409 Client Error|Conflict",
        "a kernel of this title or slug is there already; build again with another --slug",
    ),
    (
        r"\b403 Client Error|denied|Forbidden|permission|rules",
        "`kaggle config view` shows whose login it is, and --owner whose the dataset becomes: they must fit; "
        "a competition's rules are to be accepted on its page, a new account's phone is to be verified",
    ),
    (
        r"\b404 Client Error|not found",
        "look on kaggle.com how it is spelled: --owner, --slug and --competition of the build",
    ),
    ("Upload unsuccessful", "run this command again: the client goes on where it stopped"),
    (r"No module named '([\w.]+)'", r"`pip install \1` into the client's environment"),
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command of the client came to: exit code, and its lines without progress bars."""

    code: int
    out: tuple[str, ...]
    err: tuple[str, ...]

    @property
    def refusal(self) -> str | None:
        """The client's own line that says what it did not do, though its exit code may be 0."""
        return next((line for line in self.out if REFUSALS.match(line)), None)

    @property
    def retried(self) -> bool:
        """Whether a request was sent again, so that the first one may have arrived."""
        return any(line.startswith(RETRY) for line in self.err)

    @property
    def reason(self) -> str:
        """The line that says why it failed, whole."""
        if self.refusal:
            return self.refusal
        errors = [line for line in self.err if not line.startswith(NEWS)]
        if any(line.startswith("Traceback ") for line in errors):
            return errors[-1]
        usage = [line for line in errors if ": error: " in line]
        told = [line for line in self.out if not line.startswith(NEWS)]
        return next(iter([*usage, *errors, *told]), f"exit code {self.code}, without a word")

    @property
    def passing(self) -> bool:
        """Whether it is worth asking again: the network, a pause that Kaggle wants, or Kaggle itself."""
        return bool(PASSING.search("\n".join(self.err)))


@dataclass(frozen=True, kw_only=True)
class State:
    """State of a dataset's newest version, and the number of the current one (0: none yet)."""

    status: str
    number: int


def advise(reason: str) -> str:
    """What to do after the client gave this reason."""
    for pattern, cure in ADVICE:
        match = re.search(pattern, reason, re.IGNORECASE)
        if match:
            return match.expand(cure)
    return "see what the client printed above"


class Client:
    """A client that starts; it sees this environment, and what it does is said."""

    def __init__(self, path: str, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.path = path
        self.environment = {key: value for key, value in environment.items() if key not in LOUD}
        self.say = say
        self.expired = False  # The client says it once and removes its file.

    def ask(self, *words: str, loud: bool = False) -> Answer:
        """Answer to a question; nothing of it is shown. `loud`: with the client's own log in `err`."""
        more = {"VERBOSE": "true"} if loud else {}
        return self._run(words, {**self.environment, **more}, None, ASK_SECONDS)

    def do(self, *words: str) -> Answer:
        """Answer to an order; the client's lines are said as they come."""
        self.say("$ kaggle " + " ".join(words[:2]))
        return self._run(words, self.environment, self.say)

    def _run(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        say: Callable[[str], None] | None,
        seconds: float | None = None,
    ) -> Answer:
        done = watch_command([self.path, *words], environment, say, seconds)
        answer = Answer(
            code=done.returncode, out=tuple(clean_lines(done.stdout)), err=tuple(clean_lines(done.stderr))
        )
        self.expired = self.expired or EXPIRED in answer.out
        return answer

    def look(self, dataset: str) -> State | Answer:
        """State of owner/slug, or the answer that is none."""
        answer = self.ask("datasets", "status", dataset, "--format", "json")
        for line in reversed(answer.out if answer.code == 0 else ()):
            try:
                found = json.loads(line)
                return State(
                    status=str(found["status"]).lower(), number=int(found["current_version_number"] or 0)
                )
            except (ValueError, KeyError, TypeError):
                continue
        return answer

    def explain_login(self) -> str:
        """Why the client is not let in, by its own account of its login."""
        answer = self.ask("config", "view", loud=True)
        told = dict(re.findall(r"^- (\w+): (.+)$", "\n".join(answer.out), re.MULTILINE))
        if answer.code == 0 and "username" in told:
            return (
                f"Kaggle does not take the login of {told['username']} ({told.get('auth_method', 'key')}): "
                f"its key is wrong or was revoked; {LOGIN}"
            )
        ignored = re.search(r'Ignoring invalid/expired access token in "(.*)"', "\n".join(answer.err))
        if ignored:
            return f"the access token in {ignored[1]} is unknown to Kaggle or has expired; {LOGIN}"
        if self.expired:
            return f"what `kaggle auth login` left is no longer valid; {LOGIN}"
        return f"the kaggle client has no login; {LOGIN}"


def list_places(environment: Mapping[str, str], beside: Path | None = BESIDE) -> Iterator[str]:
    """Clients in the order in which they are tried.

    That of the search path; that of this Python's environment, which need not be activated; that of
    `pip install --user`.
    """
    seen = set()
    user = sysconfig.get_path("scripts", "posix_user", {"userbase": f"{environment.get('HOME', '~')}/.local"})
    for folders in (environment.get("PATH"), str(beside or ""), user):
        path = shutil.which("kaggle", path=folders) if folders else None
        if path is not None and path not in seen:
            seen.add(path)
            yield path


def find_client(
    environment: Mapping[str, str], say: Callable[[str], None], beside: Path | None = BESIDE
) -> Client:
    """The first client that starts.

    Raises  UploadError when none is there, or none of them starts
    """
    broken = ""
    for path in list_places(environment, beside):
        client = Client(path, environment, say)
        try:
            answer = client.ask("--version")
        except OSError as error:
            broken = broken or f"{path} does not start: {error.strerror}; install it again"
            continue
        if answer.code == 0:
            return client
        cure = advise(answer.reason) if "ModuleNotFoundError" in answer.reason else "install it again"
        broken = broken or f"{path} does not start: {answer.reason}; {cure}"
    python = shlex.quote(sys.executable)
    raise UploadError(
        broken or f"the kaggle client is not installed; `{python} -m pip install kaggle`, then log in"
    )


def name_client(environment: Mapping[str, str]) -> str:
    """What to type for the client that is tried first: "kaggle", or its path off the search path."""
    path = next(list_places(environment), None)
    return "kaggle" if path in (None, shutil.which("kaggle", path=environment.get("PATH", ""))) else str(path)
