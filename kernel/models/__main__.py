"""`python -m kernel.models`: the table of families."""
from ..errors import SpecError
from .cost import measure
from .families import FAMILIES, Family, build


def row(name: str, family: Family, classes: int = 80) -> tuple[str, ...]:
    """One line of the table, for the family's default parameters, or why it cannot be built here."""
    try:
        module = build(name, family.table, classes)
    except SpecError as error:  # timm is optional
        return (name, "-", "-", "-", "-", "-", str(error))
    channels = getattr(module, "channels", 1)
    bins = getattr(module, "bins", None) or family.bins
    cost = measure(module, bins, channels)
    fixed, most, least = (getattr(module, k, None) for k in ("fixed_frames", "max_frames", "min_frames"))
    frames = str(fixed) if fixed else f"{least}-{most}" if most else f"{least}+"
    widest = fixed or most
    gmac = cost.gmac_a + cost.gmac_b * widest if widest else cost.gmac_b * family.frames_per_second
    per = "clip" if family.stacker else f"{widest} frames" if widest else "second"
    return (name, str(channels), "-" if family.stacker else str(bins), "-" if family.stacker else frames,
            f"{cost.parameters:,}", f"{gmac:.3f} / {per}", family.about)


def main() -> None:
    heading = ("family", "channels", "bins", "frames", "parameters", "GMAC", "about")
    rows = [heading, *(row(name, family) for name, family in FAMILIES.items())]
    widths = [max(len(r[i]) for r in rows) for i in range(len(heading))]
    for r in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
