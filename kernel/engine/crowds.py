"""Which nets run on the same batches of a GPU, and which may be opened beside others.

Owns the rules, as functions of nets' runs. Choosing a step is `choice`, running one `step`.
"""
from collections.abc import Callable, Sequence

from .. import spec
from ..inference.devices import Device
from .net_run import NetRun
from .opener import Upcoming


def split(
    runs: Sequence[NetRun], device: Device, is_graph: Callable[[NetRun], bool]
) -> list[list[NetRun]]:
    """The nets of a step in crowds, each of which shares batches, in their order."""
    crowds: list[list[NetRun]] = []
    for run in runs:
        crowd = crowds[-1] if crowds else None
        if crowd and _may_share(crowd[0], run, device) and not is_graph(run):
            crowd.append(run)
        else:
            crowds.append([run])
    return crowds


def _may_share(first: NetRun, run: NetRun, device: Device) -> bool:
    """True where two nets may run on the same batches: alike, the same rows, no engine has died of a net."""
    if not device.cuda or first.recipe is None or run.recipe is None:
        return False
    if first.recipe.takes_constants:  # each net's checkpoint may hold numbers of its own for the finish
        return False
    if run.recipe is not first.recipe:
        mixable = may_mix(first) and may_mix(run) and _takes_alike(first, run)
        if not mixable or run.recipe.key != first.recipe.key:
            return False
    same = bool((first.lacking().mask == run.lacking().mask).all())
    if first.windows is not None:  # windows around the rows they lack are heard, too
        same = same and set(first.passed()) == set(run.passed())
    return same and not first.journal.nets_in_doubt


def may_mix(run: NetRun) -> bool:
    """True where the net may share batches with nets of other members that hear the same."""
    windowed = run.windows is not None  # members may hear other windows around the same rows
    own = run.recipe is None or run.recipe.takes_constants
    return not windowed and not own and not has_own_code(run.part)


def _takes_alike(first: NetRun, run: NetRun) -> bool:
    """True unless one is known to want its inputs in another way, such as longer ones."""
    return first.intake is None or run.intake is None or first.intake == run.intake


def has_own_code(part: spec.Part) -> bool:
    """True for a net whose class is in a user's file, which may change torch's settings for all."""
    return ".py:" in part.family


def only_ours(upcoming: Upcoming) -> NetRun | None:
    """The net to be opened ahead; one from a user's file is opened when its turn comes."""
    run = upcoming()
    return None if run is None or has_own_code(run.part) else run
