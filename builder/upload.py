"""The upload through the real `kaggle` client: dataset, wait, push; never half of it with exit code 0.

Owns the check before it, create or version, waiting for the new version, and the push. Everything is checked
again first, because a file may have been put into the folder since the build. What the client's words mean is
kaggle_client's, the same as shell commands upload_script's.
"""
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kernel.errors import UploadError
from kernel.files import write_atomically
from kernel.pin import read_constant
from kernel.spec import dumps_json, loads_json

from . import attached, bundle_check, metadata, notebook, pushed, sent, upload_script
from .kaggle_client import (
    DATASET_DONE,
    IN_USE,
    KERNEL_DONE,
    NO_LOGIN,
    NOT_THERE,
    TOO_OLD,
    Answer,
    Client,
    State,
    advise,
    find_client,
    name_client,
)
from .staging import WEIGHTS

READY_SECONDS = 1800  # Kaggle takes minutes to process a large dataset.
PAUSES = (0.5, 1.5, 10.0)  # Seconds before the first look, factor for the next ones, most.
TRIES = 4  # Questions that the network or Kaggle did not answer, in a row.
KERNEL_METADATA = "kernel-metadata.json"
PAGE = "https://www.kaggle.com/datasets/"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A build that can be uploaded: owner/slug of dataset and kernel, and the competition if any.

    weights  owner/slug of the dataset of weights, where the build was split
    """

    out: Path
    dataset: str
    kernel: str
    competition: str | None
    weights: str | None = None


def list_commands(checked: Checked, client: str = "kaggle") -> list[str]:
    """Lines of a shell that upload, wait, push, wait and submit, to be pasted as one block."""
    submit = upload_script.submit_lines(checked.kernel, checked.competition) if checked.competition else []
    lines = upload_script.upload_lines(checked.out, checked.dataset)
    if checked.weights is not None:
        lines = upload_script.upload_lines(checked.out, checked.weights, WEIGHTS) + lines
    return upload_script.join(client, lines, upload_script.push_lines(checked.out), submit)


def _build(out: Path) -> str:
    return f"build first: build_dataset.py ENSEMBLE --out {shlex.quote(str(out))}"


def _read(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise UploadError(f"{path}: no such file; {_build(path.parent.parent)}")
    data = loads_json(path.read_bytes(), path.name)
    if not isinstance(data, dict):
        raise UploadError(f"{path}: not a JSON object; build again")
    return data


def check(out: Path, say: Callable[[str], None] = print) -> Checked:
    """What a build that can be uploaded as it lies there is called.

    Raises  UploadError naming file or field and rule
    """
    for folder in (out, out / "bundle", out / "push"):
        if not folder.is_dir():
            raise UploadError(f"{folder}: no such folder; {_build(out)}")
    told = _read(out / "bundle" / bundle_check.METADATA)
    kernel = _read(out / "push" / KERNEL_METADATA)
    manifest = bundle_check.check_bundle(out / "bundle")
    dataset = metadata.complete_dataset(told)
    metadata.check_dataset(dataset, out / "bundle")
    metadata.check_kernel(kernel, out / "push")
    owner, _ = metadata.check_id(dataset["id"])
    if owner == metadata.PLACEHOLDER_OWNER:
        raise UploadError(
            f"id: {dataset['id']!r}; give --upload --owner YOUR_KAGGLE_NAME, or build again with it "
            "(make upload OWNER=...)"
        )
    sources = kernel.get("dataset_sources")
    known = [str(each).split("/")[:2] for each in sources] if isinstance(sources, list) else []
    if dataset["id"].split("/") not in known:
        raise UploadError(f"dataset_sources: {sources!r}; the kernel would run without {dataset['id']}")
    attached.check_attached(kernel, manifest, dataset["id"])
    weights = _check_weights(out, dataset["id"]) if attached.is_split(manifest) else None
    if weights is not None:
        attached.check_weights(out, manifest)
    _check_code(out / "push" / str(kernel["code_file"]), out / "bundle", manifest.bundle)
    if dataset != told:
        write_atomically(out / "bundle" / bundle_check.METADATA, dumps_json(dataset))
        say(f"{bundle_check.METADATA}: completed with id {dataset['id']}, which the client needs")
    competitions = kernel.get("competition_sources")
    return Checked(
        out=out,
        dataset=dataset["id"],
        kernel=str(kernel["id"]),
        competition=str(competitions[0]) if isinstance(competitions, list) and competitions else None,
        weights=weights,
    )


def _check_weights(out: Path, dataset: str) -> str:
    """owner/slug of the dataset of weights, once its metadata fit those of the bundle."""
    told = metadata.complete_dataset(_read(out / WEIGHTS / bundle_check.METADATA))
    metadata.check_dataset(told)
    if told["id"] != attached.weights_id(dataset):
        raise UploadError(
            f"{WEIGHTS}/{bundle_check.METADATA}: id {told['id']!r}; the bundle {dataset} wants "
            f"{attached.weights_id(dataset)}; give --upload --owner and --slug, or build again"
        )
    return str(told["id"])


def _check_code(code: Path, bundle: Path, name: str) -> None:
    """The file to push holds no secret and belongs to this bundle."""
    try:
        source = code.read_text(encoding="utf-8")
        bundle_check.check_secrets(code.name, source.encode())
        value = read_constant(notebook.read_script(code) if code.suffix == ".ipynb" else source)
    except (ValueError, SyntaxError, LookupError, TypeError, AttributeError) as error:
        raise UploadError(f"{code}: cannot be read as a kernel ({error}); build again") from error
    if value is None or value["manifest_sha256"] != bundle_check.file_sha256(bundle / "manifest.json"):
        raise UploadError(f"{code.name}: belongs to another bundle than {name}; build again")
    pushed.check_unchanged(code)


class Upload:
    """One upload: the client, the build, and how it says and sleeps.

    part  folder of the build whose dataset it is
    """

    def __init__(
        self, client: Client, checked: Checked, say: Callable[[str], None], sleep: Callable[[float], None],
        part: str = "bundle",
    ) -> None:
        self.client = client
        self.checked = checked
        self.say = say
        self.sleep = sleep
        self.part = part
        self.dataset = checked.dataset if part == "bundle" else checked.weights or ""

    def refuse(self, what: str, answer: Answer, more: str = "") -> UploadError:
        """The error for an answer that is a refusal: the client's line whole, then what to do."""
        if NO_LOGIN.search(answer.reason):
            return UploadError(f"{what}: {self.client.explain_login()}{more}")
        if TOO_OLD.search(answer.reason):
            return UploadError(f"{self.client.path}: too old; `pip install --upgrade kaggle` (2.2 or newer)")
        return UploadError(f"{what}: {answer.reason}\n{advise(answer.reason)}{more}")

    def look(self, more: str = "") -> State | Answer:
        """State of the dataset, or why there is none; asked again while the network is the reason.

        more  what to add to an error

        Raises  UploadError when there is no login, or no answer for some time
        """
        found = self.client.look(self.dataset)
        for attempt in range(TRIES - 1):
            if isinstance(found, State) or not found.passing:
                break
            self.sleep(PAUSES[0] * 2**attempt)
            found = self.client.look(self.dataset)
        if isinstance(found, State):
            return found
        if found.passing or NO_LOGIN.search(found.reason) or TOO_OLD.search(found.reason):
            raise self.refuse("kaggle datasets status", found, more)
        return found

    def send(self, before: State | Answer) -> int:
        """Create the dataset or give it a version; the number that was current before (0: none).

        before  what the dataset was asked to be in

        Raises  UploadError
        """
        bundle = self._folder(self.part)
        if isinstance(before, State):
            answer = self.client.do("datasets", "version", "-p", bundle, "-m", "new bundle")
        else:
            answer = self.client.do("datasets", "create", "-p", bundle)
        what = f"kaggle datasets {'version' if isinstance(before, State) else 'create'}"
        if answer.code == 0 and not answer.refusal and any(DATASET_DONE.match(line) for line in answer.out):
            return before.number if isinstance(before, State) else 0
        if isinstance(before, Answer) and answer.retried and IN_USE.search(answer.reason):
            self.say("the request whose answer was lost had arrived: the dataset is there")
            return 0
        raise self.refuse(what, answer, self._left(before, answer))

    def _left(self, before: State | Answer, answer: Answer) -> str:
        """What a refused upload may have left on the server, or found there, in words."""
        said = before.reason if isinstance(before, Answer) else ""
        if said and IN_USE.search(answer.reason) and not NOT_THERE.search(said):
            return f"\nor try again, if {self.dataset} is yours: at first Kaggle said {said!r}"
        lost = [line.partition(": ")[2] for line in answer.out if line.startswith("Upload unsuccessful: ")]
        if lost and any(DATASET_DONE.match(line) for line in answer.out):
            return f"\nthe newest version on Kaggle lacks {', '.join(lost)}: do not use it"
        return ""

    def wait(self, before: int) -> int:
        """Number of the new version, once it is the current one and ready.

        Raises  UploadError when Kaggle could not process it, or needs too long
        """
        name = self.dataset
        pause, factor, most = PAUSES
        waited = 0.0
        shown = ""
        rest = self._push_again() if self.part == "bundle" else "upload again, which sends the bundle"
        again = f"\nthe files are up; once {PAGE}{name} shows the new version as ready: {rest}"
        while waited < READY_SECONDS:
            self.sleep(pause)
            waited += pause
            pause = min(most, pause * factor)
            state = self.look(again)
            now = f"{state.status}, version {state.number}" if isinstance(state, State) else state.reason
            if now != shown:
                self.say(f"{name}: {now}")
            shown = now
            if not isinstance(state, State):
                continue  # Just created: Kaggle does not show it everywhere yet.
            if state.status == "ready" and state.number > before:
                return state.number
            if state.status in ("failed", "deleted"):
                raise UploadError(
                    f"{name}: Kaggle could not process the new version: status {state.status}. The client is "
                    f"told no more; the reason stands on {PAGE}{name}. Nothing was pushed"
                )
        late = f"no version above {before} is ready after {READY_SECONDS} s ({shown})"
        raise UploadError(f"{name}: {late}{again}")

    def _push_again(self) -> str:
        return f"{shlex.quote(self.client.path)} kernels push -p {shlex.quote(self._folder('push'))}"

    def _folder(self, name: str) -> str:
        return str(self.checked.out.resolve() / name)

    def push(self) -> str:
        """Number of the pushed version as text, "" when the client names none.

        Raises  UploadError
        """
        answer = self.client.do("kernels", "push", "-p", self._folder("push"))
        done = next(filter(None, map(KERNEL_DONE.match, answer.out)), None)
        if answer.code != 0 or answer.refusal or done is None:
            more = f"\nthe dataset is up, so that this is enough for another try: {self._push_again()}"
            raise self.refuse("kaggle kernels push", answer, more)
        return done[1] or ""


def upload(
    out: Path,
    environment: Mapping[str, str],
    *,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Dataset uploaded and ready, kernel pushed; what comes next is said.

    Raises  UploadError when anything of that was not done
    """
    checked = check(out, say)
    try:
        client = find_client(environment, say)
    except UploadError:
        say("where a client is, this does the same, pasted as one block:\n")
        say("\n".join([*list_commands(checked), ""]))
        raise
    if checked.weights is not None:
        send_weights(Upload(client, checked, say, sleep, WEIGHTS))
    task = Upload(client, checked, say, sleep)
    version = task.wait(task.send(task.look()))
    say(f"{checked.dataset}: version {version} is ready")
    number = task.push()
    rest = tell_rest(checked, number, name_client(environment))
    say(f"{checked.kernel}: version {number or '(unknown)'} is pushed; {rest}")


def send_weights(task: Upload) -> None:
    """The weights of a split bundle on Kaggle: sent only if its newest version is not the one that was sent
    from here with these very bytes.

    Raises  UploadError
    """
    state = task.look()
    known = sent.find_version(task.checked.out, task.dataset)
    if isinstance(state, State) and state.status == "ready" and state.number == known:
        task.say(f"{task.dataset}: version {state.number} holds these very weights; they are not sent again")
        return
    version = task.wait(task.send(state))
    task.say(f"{task.dataset}: version {version} is ready")
    sent.remember(task.checked.out, task.dataset, version)


def tell_rest(checked: Checked, version: str, client: str) -> str:
    """What is left to do after the push."""
    if checked.competition is None:
        return "no competition is attached (build with --competition SLUG), so nothing is to be submitted"
    lines = upload_script.submit_lines(checked.kernel, checked.competition)
    known = [f"version={version}"] if version else ['printf "version of the kernel: "; read -r version']
    return "this waits and submits it:\n\n" + "\n".join(upload_script.join(client, known, lines))
