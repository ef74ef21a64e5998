"""Every published post-processing under the name of its golden numbers: a case -> what ours gives for it.

Each function takes the case's inputs f64 by name and its arguments, and gives what stands under `output`.
All go through `kernel.scores.steps` as an ensemble's TOML would. The authors' numbers are no part of this
repository.
"""
from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernel.errors import HourglassError
from kernel.scores import steps
from kernel.scores.means import mean
from kernel.scores.metrics import macro_auc, macro_auc_per_class
from kernel.scores.priors import SITE_AND_TIME, count_priors
from kernel.scores.step import Sheet, logit, sigmoid

Inputs = Mapping[str, np.ndarray]
Arguments = Mapping[str, Any]


def _rng(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def _truth(name: str, rows: int, classes: int, share: float = 0.25, empty: Sequence[int] = ()) -> np.ndarray:
    out = (_rng(name).uniform(0, 1, (rows, classes)) < share).astype(np.uint8)
    out[:, list(empty)] = 0
    return out


DRAWN: dict[str, Callable[..., np.ndarray]] = {
    "probs": lambda name, *shape: (_rng(name).uniform(0.001, 0.999, shape) ** 3).astype(np.float32),
    "logits": lambda name, *shape: (_rng(name).standard_normal(shape) * 2 - 1).astype(np.float32),
    "coarse": lambda name, *shape: (_rng(name).randint(0, 8, shape) / 8.0).astype(np.float32),
    "faint": lambda name, *shape: (_rng(name).uniform(0.001, 0.999, shape) ** 9).astype(np.float32),
    "faint_coarse": lambda name, *shape: (_rng(name).randint(0, 8, shape) / 256.0).astype(np.float32),
    "truth": _truth,
}


def draw(told: Sequence[Any]) -> np.ndarray:
    """f64 array of [kind, name, *shape], or of a list of these."""
    if isinstance(told[0], list):
        return np.stack([draw(one) for one in told])
    return np.asarray(DRAWN[told[0]](*told[1:])).astype(np.float64)


def sheet(
    rows: int, classes: int, *, windows: int | None = None, names: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None, files: Sequence[str] | None = None,
) -> Sheet:
    """Rows of files with `windows` rows each, or of these files."""
    told = list(files or (f"f{i // (windows or rows)}" for i in range(rows)))
    return Sheet(
        classes=tuple(names or (f"c{k}" for k in range(classes))),
        groups={name: tuple(held) for name, held in (groups or {}).items()},
        ids=tuple(f"{name}_{i}" for i, name in enumerate(told)),
        files=tuple(told),
        recordings=tuple(np.flatnonzero(np.array(told) == name) for name in dict.fromkeys(told)),
    )


def run(
    table: np.ndarray, entries: Sequence[Mapping[str, Any]], about: Sheet,
    others: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """The table after these steps; a step that fails is an error here."""

    def fault(where: str, error: HourglassError) -> None:
        raise AssertionError(f"{where}: {error}")

    none = np.zeros(len(table), bool)
    how = steps.Circumstances(others=others or {}, final=none, partial=none, complete=True, fault=fault)
    bound = steps.bind(steps.build(entries, "steps"), about, "steps")
    return steps.carry_out(bound, np.asarray(table, np.float64), about, how)[0]


def _run(x: np.ndarray, entries: Sequence[Mapping[str, Any]], **about: Any) -> np.ndarray:
    return run(x, entries, sheet(*x.shape, **about))


def _masked(mask: Sequence[bool]) -> dict[str, Any]:
    """Class groups `yes` and `no` by a mask."""
    return {"groups": {word: [f"c{k}" for k, held in enumerate(mask) if held is wanted]
                       for word, wanted in (("yes", True), ("no", False))}}


def _file_topk(x: Inputs, a: Arguments) -> np.ndarray:
    return _run(x["p"], [{"kind": "file_top", "top": a["top_k"], "power": a["power"]}], windows=a["windows"])


def _thresholds(x: Inputs, a: Arguments) -> np.ndarray:
    t = [float(t) for t in 0.25 + 0.5 * x["u"]]
    return _run(x["p"], [{"kind": "threshold_remap", "threshold": t}])


def _prior_tables(x: Inputs, a: Arguments) -> dict[str, Any]:
    found = count_priors(x["y"], a["site"], a["hour"])
    told: dict[str, Any] = {"global": found.everywhere, "hours": sorted(found.hours)}
    for name, table in (("hour", found.hours), ("site", found.sites), ("site_hour", found.both)):
        ordered = [held for _, held in sorted(table.items())]  # type: ignore[type-var]
        told |= {f"{name}_p": [p for p, _ in ordered], f"{name}_n": [n for _, n in ordered]}
    return told


def _name(site: str, hour: int) -> str:
    return f"BC2026_Train_0001_{site}_20250101_{hour:02d}0000"


def _labels(y: np.ndarray, sites: Sequence[str], hours: Sequence[int]) -> str:
    lines = [f"{_name(s, h)},{' '.join(f'c{k}' for k in np.flatnonzero(row))}"
             for row, s, h in zip(y, sites, hours, strict=True)]
    return "\n".join(["file,labels", *lines]) + "\n"


LABELLED = {
    "site": ["S01", "S02", "S01", "S09", "S02", "S01", "S03", "S03"] * 3,
    "hour": [5, 5, 6, 22, 23, 5, 6, 0] * 3,
}


def _prior_apply(x: Inputs, a: Arguments) -> np.ndarray:
    labels = _labels(x["y"], LABELLED["site"], LABELLED["hour"])  # type: ignore[arg-type]
    files = [_name(s, h) for s, h in zip(a["site"], a["hour"], strict=True)]
    entry = {"kind": "site_hour_prior", "labels": labels, "weight": a["lambda"], "pattern": SITE_AND_TIME}
    return logit(_run(sigmoid(x["logits"]), [entry], files=files))


def _hour_prior(x: Inputs, a: Arguments) -> np.ndarray:
    lines = [f"{a['hour']},{name},{ratio}" for name, ratio in zip(a["taxon"], a["ratio"], strict=True)]
    groups = {name: [f"c{k}"] for k, name in enumerate(a["taxon"])}
    entry = {"kind": "hour_prior", "ratios": "\n".join(["hour,group,ratio", *lines]) + "\n"}
    return _run(x["p"], [entry], groups=groups, files=[_name("S01", a["hour"])] * len(x["p"]))


def _clip_frame(x: Inputs, a: Arguments) -> np.ndarray:
    share = a["share_clip"]
    clip, frame = (np.clip(x[key], -50, 50) for key in ("clip_logits", "frame_logits"))
    p = (share * sigmoid(clip) + (1 - share) * sigmoid(frame.max(axis=2))).mean(axis=0)
    return _run(p, [{"kind": "smooth_gaussian", "sigma": a["sigma"]}, {"kind": "cut"}])


MEMBER_POST: dict[str, dict[str, Any]] = {
    "TEMPORAL_SMOOTHING": {"kind": "smooth", "weights": [0.2, 0.6, 0.2], "ends": "repeat"},
    "DELTA_SMOOTH": {"kind": "smooth", "weights": [0.075, 0.85, 0.075], "ends": "repeat"},
    "RANK_AWARE": {"kind": "file_top", "power": 0.4},
    "CONF_SCALE": {"kind": "file_top", "top": 2},
}


def _member_post(x: Inputs, a: Arguments) -> np.ndarray:
    p = x["p"]
    if "TEMPORAL_TTA" in a["on"]:  # a mean of passes, no step
        p = (p + 2 * x["forward"] + 2 * x["backward"]) / 5
    return _run(p, [step for name, step in MEMBER_POST.items() if name in a["on"]])


GATES: dict[str, list[dict[str, Any]]] = {
    "GATE1_NOISE": [{"kind": "gate_noise", "gate": "perch"}],
    "GATE2_TEMPORAL": [{"kind": "gate_sustained", "gate": "perch"}],
    "GATE3_SPIKE": [{"kind": "gate_spike", "gate": "perch"}],
    "GATE4_MIRROR": [
        {"kind": "group_max", "groups": [["47158son15", "47158son16"], ["47158son09", "47158son12"]]}],
    "GATE5_RARE": [{"kind": "damp_rare", "groups": ["Amphibia", "Mammalia"]}],
    "GATE6_STATION": [{"kind": "site_floor", "sites": {"S15": ["47158son07"]}}],
    "GATE_SR": [{"kind": "softmax_share"}],
}


def _cut(tables: Inputs, about: Sheet) -> dict[str, np.ndarray]:
    entry = {"kind": "cut", "low": 1e-5, "high": 1 - 1e-5}
    return {name: run(p, [entry], about) for name, p in tables.items()}


def blend_by_rank(
    tables: Mapping[str, np.ndarray], about: Sheet, weights: Mapping[str, Mapping[str, float]]
) -> np.ndarray:
    """Weighted mean of ranks, with weights by class group."""
    whole = mean("rank", np.stack(list(tables.values())))
    for group, names in about.groups.items():
        chosen = about.columns([group])
        held = [weights[member][group] for member in tables]
        whole[:, chosen] = mean("rank", np.stack([p[:, chosen] for p in tables.values()]), held)
        assert names
    return whole


def taxon_sheet(a: Arguments) -> Sheet:
    """The sheet of a case with row ids, classes and their taxa."""
    groups: dict[str, list[str]] = {}
    for name, group in zip(a["classes"], a["taxon"], strict=True):
        groups.setdefault(group, []).append(name)
    files = [row.rpartition("_")[0] for row in a["row_ids"]]
    return sheet(len(files), len(groups), names=a["classes"], groups=groups, files=files)


def _fg_blend(x: Inputs, a: Arguments) -> np.ndarray:
    about = taxon_sheet(a)
    tables = _cut(x, about)
    others = [name for name in tables if name != "perch"]
    gates = [{**step, "others": others} if step["kind"] in ("gate_noise", "gate_spike") else step
             for name in GATES if name in a["gates"] for step in GATES[name]]
    return run(blend_by_rank(tables, about, a["weights"]), gates, about, tables)


def _ym_blend(x: Inputs, a: Arguments) -> np.ndarray:
    about = taxon_sheet(a)
    tables = _cut(x, about)
    whole = mean("rank", np.stack([tables["proto"], tables["sed"]]), a["weights"])
    gates = [
        {"kind": "gate_noise", "gate": "proto", "others": ["sed"]},
        {"kind": "gate_sustained", "gate": "proto", "quiet": "sed"},
        {"kind": "gate_spike", "gate": "proto", "others": ["sed"]},
        *GATES["GATE4_MIRROR"], *GATES["GATE5_RARE"],
    ]
    return run(whole, gates, about, tables)


TEXTURE = {"kind": "smooth", "weights": [0.175, 0.65, 0.175], "ends": "repeat", "groups": ["yes"]}
EVENT = {"kind": "smooth_local_max", "share": 0.15, "groups": ["no"]}
OPEN = {"kind": "smooth_adaptive", "share": 0.2, "ends": "keep"}
Y_MODES: dict[str, list[dict[str, Any]]] = {
    "v2": [TEXTURE, EVENT, OPEN],
    "texture": [{"kind": "smooth", "ends": "repeat", "kernels":
                 "group,weights\nyes,0.35 0.30 0.35\ndefault,0.20 0.60 0.20\n"}],
    "gaussian": [{"kind": "smooth", "ends": "repeat", "weights": [0.1, 0.2, 0.4, 0.2, 0.1]}],
}


def _y_smooth(x: Inputs, a: Arguments) -> np.ndarray:
    return _run(x["p"], Y_MODES[a["mode"]], **_masked(a["texture"]))


def _texture(x: Inputs, a: Arguments) -> np.ndarray:
    side = a["alpha"] / 2
    return _run(x["p"], [{**TEXTURE, "weights": [side, 1 - a["alpha"], side]}], **_masked(a["mask"]))


def _event(x: Inputs, a: Arguments) -> np.ndarray:
    return _run(x["p"], [{**EVENT, "share": a["alpha"], "groups": ["yes"]}], **_masked(a["mask"]))


def _chain_y(x: Inputs, a: Arguments) -> dict[str, np.ndarray]:
    groups = [_y_rows(x[f"{name}_clip"], x[f"{name}_frame"], held["share_frame_max"])
              for name, held in a["groups"].items()]
    whole = mean("arithmetic", np.stack(groups), [held["weight"] for held in a["groups"].values()])
    files = [row.rpartition("_")[0] for row in a["row_ids"]]
    about = sheet(*whole.shape, files=files, **_masked(a["texture"]))
    before = run(whole, Y_MODES["v2"], about)
    after = run(before, [{"kind": "file_top", "power": a["file_max_power"], "only_rows_of": 12}], about)
    return {"before_file_post": before, "submission": after}


def _y_rows(clip: np.ndarray, frame: np.ndarray, share: float) -> np.ndarray:
    """Rows of windows of 10 s, two rows each, overlapping; fold, file, window, ..., class. No step."""
    folds, files, windows, rows, classes = clip.shape
    step = frame.shape[3] // rows
    best = np.stack([frame[..., k * step : (k + 1) * step, :].max(axis=3) for k in range(rows)], axis=3)
    p = ((1 - share) * sigmoid(clip) + share * sigmoid(best)).mean(axis=0)
    total, count = np.zeros((2, files, windows + rows - 1, classes))
    for w in range(windows):
        total[:, w : w + rows] += p[:, w]
        count[:, w : w + rows] += 1
    return (total / count).reshape(-1, classes)


def _box5(x: Inputs, a: Arguments) -> np.ndarray:
    ones = [1.0] * (2 * a["radius"] + 1)
    return np.mean([_run(sigmoid(one), [{"kind": "smooth", "weights": ones}]) for one in x["logits"]], axis=0)


def _events(x: Inputs, a: Arguments) -> np.ndarray:
    keys = {"beta": a["beta"], "reach": a["radius"], "file_mean": a["global"], "threshold": a["threshold"]}
    return _run(x["p"], [{"kind": "smooth_events", **keys, "keep": a["keep"], "segment": a["segment"]}])


def _logit_mix(x: Inputs, a: Arguments) -> np.ndarray:
    return _run(x["p"], [{"kind": "file_logit_mix"}], files=[row.partition("_")[0] for row in a["row_ids"]])


def _three(x: Inputs, a: Arguments) -> np.ndarray:
    side = a["alpha"] / 2
    entry = {"kind": "smooth", "weights": [side, 1 - a["alpha"], side], "ends": "repeat"}
    return _run(x["p"], [entry], windows=a["windows"])


def _rank_gate(x: Inputs, a: Arguments) -> np.ndarray:
    whole = mean("arithmetic", np.stack([x["a"], x["b"]]), a["weights"])
    return np.asarray(whole * (0.5 + 0.5 * _run(x["gate"], [{"kind": "rank", "from_zero": True}])))


def _macro_auc(x: Inputs, a: Arguments) -> dict[str, Any]:
    return {"macro": macro_auc(x["truth"], x["p"]), "per_class": macro_auc_per_class(x["truth"], x["p"])}


def _fused(kind: str, several: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    power = mean("power", several, weights, 2.0)
    return {"mean": lambda: mean("arithmetic", several, weights), "gaus": lambda: power,
            "vlom": lambda: mean("vlom", several, weights)}[kind]()


def _fuse(kind: str) -> Callable[[Inputs, Arguments], np.ndarray]:
    return lambda x, a: _fused(kind, x["p"] + (1e-9 if kind == "vlom" else 0.0), a["weights"])


def _average(kind: str) -> Callable[[Inputs, Arguments], np.ndarray]:
    return lambda x, a: _fused(kind, x["p"], [1.0] * len(x["p"]))


CASES: dict[str, Callable[[Inputs, Arguments], Any]] = {
    "file_topk_power": _file_topk,
    "file_max_power": lambda x, a: _file_topk(x, {**a, "top_k": 1}),
    "adaptive_delta_clamped": lambda x, a: _run(
        x["p"], [{"kind": "smooth_adaptive", "share": a["base_alpha"]}], windows=a["windows"]),
    "adaptive_delta_open": lambda x, a: _run(x["p"], [{**OPEN, "share": a["base_alpha"]}]),
    "threshold_remap": _thresholds,
    "prior_tables": _prior_tables,
    "prior_apply": _prior_apply,
    "hour_prior_taxon": _hour_prior,
    "clip_frame_half_gauss": _clip_frame,
    "member_post": _member_post,
    "fg_blend": _fg_blend,
    "ym_blend_gates": _ym_blend,
    "rank_normalise_0_1": lambda x, a: _run(x["p"], [{"kind": "rank", "from_zero": True}]),
    "pseudo_rank_gate": _rank_gate,
    "smooth_texture_mean": _texture,
    "smooth_event_localmax": _event,
    "y_time_smooth": _y_smooth,
    "group_max": lambda x, a: _run(
        x["p"], [{"kind": "group_max", "groups": [[f"c{k}" for k in group] for group in a["groups"]]}]),
    "chain_y": _chain_y,
    "smooth_box5_cut": _box5,
    "lse_globalmean_changepoint": _events,
    "file_max_logit_mix": _logit_mix,
    "smooth_three_clamped": _three,
    "macro_auc": _macro_auc,
    **{f"fuse_{kind}": _fuse(kind) for kind in ("mean", "gaus", "vlom")},
    **{f"vs_average_{kind}": _average(kind) for kind in ("mean", "gaus", "vlom")},
}
