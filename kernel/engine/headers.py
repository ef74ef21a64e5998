"""Reads the headers of the clips: side by side, and only for a part of the time.

Owns how many are read at once, how long that may take, and what becomes of the rest: their lengths are
guessed, and each is read by the loader that decodes its clip. On a mount that takes 20 ms for a file, 50,000
headers one after the other would be 1,000 s before the first score. What a header says is sound.decode's.
"""
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from ..errors import ClipQuarantined, ClipUnreadable
from ..sound.clips import ClipIndex
from ..sound.decode import Clip, probe
from .journal import Journal

READERS = 8  # at once: a slow mount answers several as fast as one
ROWS_PER_READER = 32  # fewer clips are read by fewer threads
SHARE = 0.05  # of the budget that headers may take
# Windows lie at samples of their recording, so without its rate none of them can be scored
WINDOWED_SHARE = 0.5
LOOK_S = 0.25  # between two looks at the clock


def read_headers(
    ids: Sequence[str],
    index: ClipIndex,
    journal: Journal,
    beat: Callable[[], None],
    late: Callable[[], bool],
) -> dict[str, Clip]:
    """Clip of every id that has a file; `Clip.unread` where the time was up before its header was read.

    beat  called for each header, by several threads;  late: True once no more may be read
    """
    paths = {id: path for id in ids if (path := index.path(id)) is not None}

    def read(id: str) -> Clip:
        with journal.flight("clip", [id]):  # a header can kill a decoder
            clip = probe(id, paths[id], index.roots)
        beat()
        return clip

    clips = {id: _refuse(id) for id in paths if id in journal.quarantined_clips}
    for id in paths:
        if id in journal.suspects and not late():  # alone: a second crash then names the culprit
            clips[id] = read(id)
    rest = [id for id in paths if id not in clips]
    clips |= _read_side_by_side(rest, read, late)
    unread = [id for id in paths if id not in clips]
    return clips | {id: Clip(id=id, path=paths[id], unread_below=index.roots) for id in unread}


def _refuse(id: str) -> Clip:
    return Clip(id=id, error=ClipQuarantined(f"{id!r}: in flight in two crashes; its row keeps the prior"))


def _read_side_by_side(
    ids: Sequence[str], read: Callable[[str], Clip], late: Callable[[], bool]
) -> dict[str, Clip]:
    """Clips of those ids that were read in time."""
    readers = min(READERS, 1 + len(ids) // ROWS_PER_READER)
    pool = ThreadPoolExecutor(readers, "headers")
    clips: dict[str, Clip] = {}
    coming = iter(ids)
    flying: dict[Future[Clip], str] = {}
    try:
        while not late():
            for id in coming:
                flying[pool.submit(read, id)] = id
                if len(flying) >= 4 * readers:
                    break
            if not flying:
                break
            for future in wait(flying, LOOK_S, FIRST_COMPLETED).done:
                id = flying.pop(future)
                clips[id] = future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a read that hangs must not hold the run
    return clips


def refuse_unread(clips: Mapping[str, Clip]) -> dict[str, Clip]:
    """The clips; of recordings that are cut into windows one without a header is an error."""
    reason = "its header was not read in time, the mount is slow; its rows keep the prior"
    late = {id: Clip(id=id, path=clip.path, error=ClipUnreadable(f"{id!r}: {reason}"))
            for id, clip in clips.items() if clip.unread}
    return {**clips, **late}
