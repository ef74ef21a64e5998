"""The order of a run whose engine opens in this very process: what the guard would have written."""
import time
from pathlib import Path

from kernel import limits
from kernel.order import Order, Sample
from kernel.scores import submission


def make_order(
    data: Path,
    bundle: Path,
    state: Path,
    *,
    seconds: float = 600.0,
    device: str = "auto",
    loaders: int | None = 2,
    first: int | None = None,
    attempt: int = 1,
    backend: str = "auto",
) -> Order:
    """An order for the input `data` (a sample and the folder test); `state` is working and private folder."""
    path = data / "sample_submission.csv"
    sample = submission.read_sample(path)
    return Order(
        bundle=bundle,
        manifest=bundle / "manifest.json",
        input=data,
        clips=data / "test",
        working=state,
        state=state,
        sample=Sample(path=path, header=tuple(sample.header), ids=tuple(sample.ids)),
        limits=limits.limits("fat2019", seconds=seconds),
        marks=limits.marks(seconds),
        started=time.monotonic(),
        started_boot=time.clock_gettime(time.CLOCK_BOOTTIME),
        offset_s=0.0,
        device=device,
        loaders=loaders,
        first=first,
        attempt=attempt,
        backend=backend,
    )
