"""What report.json says about single rows beside their scores: what each member says, and where in time.

Owns these types. Who computes them is the engine's `explain`, who draws them `page_rows`. Values that are
None were not heard.
"""
from dataclasses import dataclass

BINS = 20  # equal parts of a row's own length
CLASSES = 10  # best ones of a row that are told of
MEMBERS = 12  # told of one by one; the rest is counted
NETS = 3  # at most, of which moments are told
MOMENT_ROWS = 30  # (row, class) pairs of which moments are told: two classes of twelve rows, ten of one


@dataclass(frozen=True, kw_only=True)
class MemberSays:
    """One member or stacker: its scores of the row's classes, its own best class and that one's score.

    scores  None for a class that it does not know
    """

    name: str
    scores: tuple[float | None, ...]
    best: str
    score: float


@dataclass(frozen=True, kw_only=True)
class MomentsReport:
    """What one net says of each of BINS equal parts of the row.

    kind     "passes": the view's, as scored; "frames": of the net; "pieces": each heard alone
    scores   by class, the row's best first, then by bin
    aligned  False where the front end lays the array out anew: bins are not the clip's seconds then
    """

    net: str
    kind: str
    scores: tuple[tuple[float | None, ...], ...]
    aligned: bool = True


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One row.

    classes  its best ones by the ensemble, the best first; all scores are of these
    others   members that are not told of one by one
    """

    row: str
    seconds: float
    classes: tuple[str, ...]
    members: tuple[MemberSays, ...] = ()
    others: int = 0
    moments: tuple[MomentsReport, ...] = ()

    @property
    def dissenters(self) -> tuple[MemberSays, ...]:
        """Members whose own best class is not the ensemble's, although they know that one."""
        return tuple(member for member in self.members
                     if member.best != self.classes[0] and member.scores[0] is not None)
