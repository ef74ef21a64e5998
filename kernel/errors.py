"""The one error tree of Hourglass.

Owns every exception that names a fault to the user. A message says what is wrong, where, and what to do next.
Does not decide what becomes of a run: that is the caller's, who records `code` in the report.
"""
import difflib
from collections.abc import Iterable


class HourglassError(Exception):
    """Base of all named faults; `code` is the class name, as report.json has it."""

    @property
    def code(self) -> str:
        return type(self).__name__


class SpecError(HourglassError):
    """A key or a value of a TOML or JSON file is wrong."""


class BundleError(HourglassError):
    """The bundle cannot be trusted or used."""


class BundleMissing(BundleError):
    """There is no bundle where one was looked for."""


class BundleHashMismatch(BundleError):
    """Bytes differ from those that the manifest names."""


class BundleInvalid(BundleError):
    """The manifest or a file of the bundle breaks a rule: names, sizes, unknown formats."""


class ModelLoadFailed(BundleError):
    """A net's bytes are right, but the net cannot be built or filled."""


class NetQuarantined(BundleError):
    """The net was being opened, or was at three rows, at two crashes of the engine each."""


class ClipError(HourglassError):
    """A fault of one clip: it costs its own rows, never the run."""


class ClipUnreadable(ClipError):
    """Not audio, not readable, or forbidden: a FIFO, a device, a file outside the input folder."""


class ClipEmpty(ClipError):
    """Not one sample could be decoded."""


class ClipTooLong(ClipError):
    """Only the beginning was used; the row is predicted all the same."""


class ClipQuarantined(ClipError):
    """The clip was in work at two crashes of the engine."""


class EmbeddingFailed(ClipError):
    """A graph has no vectors for this row: its heads pass over it, the other members decide it."""


class StepFailed(HourglassError):
    """A step on the scores failed, or gave what is no score: the submission goes without it."""


class SubmissionError(HourglassError):
    """The sample or the output cannot be used."""


class SampleMissing(SubmissionError):
    """There is no usable sample_submission.csv."""


class OutputUnwritable(SubmissionError):
    """The working folder refuses a file."""


class CandidateRejected(SubmissionError):
    """The validator refused a candidate; the old file stays."""


class LimitError(HourglassError):
    """A limit is no limit, or leaves no room."""


class BudgetTooSmall(LimitError):
    """There is not enough time for more than the prior."""


class MemoryTooSmall(LimitError):
    """There is not enough memory for the engine."""


class StoreError(HourglassError):
    """An array could not be kept: it is computed again, so no row is lost."""


class DeviceError(HourglassError):
    """A device failed its probe or was lost."""


class UploadError(HourglassError):
    """Metadata or files that Kaggle would refuse or change."""


def text_of(error: BaseException) -> str:
    """The error's message; a user's own class may raise where it is asked for it."""
    try:
        return str(error)
    except BaseException:
        return "its message cannot be read"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Tail of a message: the nearest choice, or all of them when none is near."""
    names = sorted(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else "choose one of: " + ", ".join(names)
