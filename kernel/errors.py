"""The one error tree of Hourglass.

Owns every exception that names a fault to the user. A message says what is wrong, where, and what to do next.
Does not decide what becomes of a run: that is the caller's, who records `code` in the report.

HourglassError
  SpecError              a TOML or JSON key or value is wrong (strict loaders, did-you-mean)
  BundleError            the bundle cannot be trusted or used
    BundleMissing          no bundle where one was looked for
    BundleHashMismatch     bytes differ from the manifest
    BundleInvalid          manifest breaks a rule (names, sizes, unknown format)
    ModelLoadFailed        a net's bytes are right but the net cannot be built or filled
  ClipError              one clip costs its own row, never the run
    ClipUnreadable         not audio, unreadable, forbidden (FIFO, device, outside the input root)
    ClipEmpty              zero decoded samples
    ClipTooLong            only a prefix was used (a note, the row is predicted)
    ClipQuarantined        in flight in two crashes
  SubmissionError        the sample or the output is unusable
    SampleMissing          no sample_submission.csv and no clips
    OutputUnwritable       the working folder refuses a file
    CandidateRejected      the validator refused a candidate; the old file stays
  LimitError             a limit leaves no room
    BudgetTooSmall         not enough seconds for more than the prior
    MemoryTooSmall         not enough memory for the engine
  StoreError             a spectrogram could not be kept (always survivable: recompute)
  DeviceError            a device failed its probe or was lost
  UploadError            metadata or files that Kaggle would refuse or change
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable


class HourglassError(Exception):
    """Base of all named faults; `code` is the class name used in report.json."""

    @property
    def code(self) -> str:
        return type(self).__name__


class SpecError(HourglassError):
    pass


class BundleError(HourglassError):
    pass


class BundleMissing(BundleError):
    pass


class BundleHashMismatch(BundleError):
    pass


class BundleInvalid(BundleError):
    pass


class ModelLoadFailed(BundleError):
    pass


class ClipError(HourglassError):
    pass


class ClipUnreadable(ClipError):
    pass


class ClipEmpty(ClipError):
    pass


class ClipTooLong(ClipError):
    pass


class ClipQuarantined(ClipError):
    pass


class SubmissionError(HourglassError):
    pass


class SampleMissing(SubmissionError):
    pass


class OutputUnwritable(SubmissionError):
    pass


class CandidateRejected(SubmissionError):
    pass


class LimitError(HourglassError):
    pass


class BudgetTooSmall(LimitError):
    pass


class MemoryTooSmall(LimitError):
    pass


class StoreError(HourglassError):
    pass


class DeviceError(HourglassError):
    pass


class UploadError(HourglassError):
    pass


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Tail of a message: the nearest choice, or all of them when none is near."""
    names = sorted(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else "choose one of: " + ", ".join(names)
