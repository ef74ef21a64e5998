"""What a GPU's figures are compared with: two ways that others run the same nets, and what the device can do.

`one clip a call` is the loop of the argus kernel (its cuts, fp32, answers read at once), `padded` a loader's
batches of 32 clips in arrival order, padded to the longest, fp16 autocast. Both get our front ends' arrays
for nothing, which favours them; argus' own front end (librosa) is timed beside them where librosa is there.
Each peer has BUDGET_S seconds for an ensemble: the nets that it reaches stand for all by their multiply-adds,
the clips for all by their seconds of audio.
"""
from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import zero_cost

import torch  # isort: skip

from kernel import models, spec
from kernel.bundle import open_bundle
from kernel.inference.member import row_inputs

PADDED_BATCH = 32
WARM_UP_CLIPS = 4
BUDGET_S = 20.0
LIBROSA_CLIPS = 64
Inputs = Sequence[dict[str, torch.Tensor]]


def _first(out: Any) -> torch.Tensor:
    found: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return found


def one_clip_a_call(module: torch.nn.Module, inputs: Inputs, where: str) -> None:
    """fp32, the passes of one clip a call, answers read at once."""
    for given in inputs:
        there = {k: v.to(where) for k, v in given.items()}
        _first(module(there["x"] if set(there) == {"x"} else there)).cpu()


def padded(module: torch.nn.Module, inputs: Inputs, where: str) -> None:
    """fp16 autocast (bf16 on a CPU), batches of 32 clips' passes in arrival order, padded to the longest."""
    for first in range(0, len(inputs), PADDED_BATCH):
        some = inputs[first : first + PADDED_BATCH]
        there = {k: _pad([given[k] for given in some]).to(where) for k in some[0]}
        with torch.autocast(where, dtype=torch.float16 if where == "cuda" else torch.bfloat16):
            _first(module(there["x"] if set(there) == {"x"} else there)).float().cpu()


def _pad(values: Sequence[torch.Tensor]) -> torch.Tensor:
    longest = max(value.shape[-1] for value in values)
    return torch.cat([torch.nn.functional.pad(v, (0, longest - v.shape[-1])) for v in values])


PEERS: dict[str, Callable[[torch.nn.Module, Inputs, str], None]] = {
    "one clip a call": one_clip_a_call, "padded": padded,
}


def _nets(bundle: Path) -> Iterator[tuple[spec.Member, torch.nn.Module, float]]:
    """Every first-level net of a bundle, one at a time, and its multiply-adds per frame."""
    manifest = spec.load_manifest((bundle / "manifest.json").read_bytes(), "manifest.json")
    opened = open_bundle(bundle, manifest)
    members = {member.name: member for member in manifest.ensemble.members}
    for entry in manifest.nets:
        if entry.member in members and entry.kind != "onnx":
            member = members[entry.member]
            outputs = member.outputs(len(manifest.ensemble.classes))
            net = models.build(member.family, dict(member.params), outputs)
            net.load_state_dict(models.rename(member.family, dict(member.params), opened.load_state(entry)))
            yield member, net.eval(), manifest.costs.get(member.name, spec.Cost()).gmac_b


def measure(ensemble: spec.Ensemble, bundle: Path, where: str, seconds: Sequence[float], clips: int
            ) -> dict[str, Any]:
    """Seconds of both peers for all clips, scaled from `clips` of them and from the nets that they reach."""
    scale = sum(seconds) / sum(seconds[:clips])
    spent = dict.fromkeys(PEERS, 0.0)
    work = dict.fromkeys(PEERS, 0.0)
    nets = dict.fromkeys(PEERS, 0)
    whole = 0.0
    inputs: dict[str, Inputs] = {}
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        for member, module, gmac in _nets(bundle):
            gmac = gmac or 1.0
            whole += gmac
            left = [peer for peer in PEERS if spent[peer] < BUDGET_S]
            if left and member.name not in inputs:
                inputs = {member.name: _inputs(ensemble, member, seconds[:clips], Path(place))}
            there = module.to(where) if left else module
            for peer in left:
                PEERS[peer](there, inputs[member.name][:WARM_UP_CLIPS], where)
                began = time.perf_counter()
                PEERS[peer](there, inputs[member.name], where)
                spent[peer] += time.perf_counter() - began
                work[peer] += gmac
                nets[peer] += 1
    row: dict[str, Any] = {"peer_clips": clips, "peer_nets": nets}
    row["peers"] = {peer: spent[peer] * scale * whole / work[peer] for peer in PEERS if work[peer]}
    return row


def _inputs(
    ensemble: spec.Ensemble, member: spec.Member, seconds: Sequence[float], folder: Path
) -> Inputs:
    setting = zero_cost.open_setting(ensemble, member, seconds, folder)
    rows = [setting.runs[0].rows.all[i] for i in range(len(seconds))]
    try:
        return [row_inputs(setting.nets[0], setting.feed.store, row) for row in rows]
    finally:
        setting.feed.store.close()
        setting.runs[0].heartbeat.close()


def measure_librosa(clips: Sequence[Path], seconds: Sequence[float]) -> dict[str, Any]:
    """Seconds of argus' own front end over all clips on this machine's cores; scaled from some of them."""
    if importlib.util.find_spec("librosa") is None:
        return {"librosa_s": None}
    from benchmarks import baselines

    some = [str(path) for path in clips[:LIBROSA_CLIPS]]
    with ProcessPoolExecutor() as pool:
        list(pool.map(baselines.log_mel, some[:WARM_UP_CLIPS]))
        began = time.perf_counter()
        list(pool.map(baselines.log_mel, some, chunksize=4))
        spent = time.perf_counter() - began
    return {"librosa_s": spent * sum(seconds) / sum(seconds[: len(some)])}


def measure_limit(cuda: bool) -> dict[str, float]:
    """TFLOP/s of one 256-channel 3 x 3 convolution in fp32 and fp16: what the device can do at all."""
    if not cuda:
        return {}
    found = {}
    for name, kind in (("fp32", torch.float32), ("fp16", torch.float16)):
        x = torch.randn(64, 256, 64, 64, device="cuda", dtype=kind).to(memory_format=torch.channels_last)
        weights = torch.randn(256, 256, 3, 3, device="cuda", dtype=kind)
        for _ in range(3):
            torch.nn.functional.conv2d(x, weights, padding=1)
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        for _ in range(10):
            torch.nn.functional.conv2d(x, weights, padding=1)
        events[1].record()
        torch.cuda.synchronize()
        flops = 10 * 2 * 9 * 256 * x.numel()
        found[name] = flops / (events[0].elapsed_time(events[1]) / 1000) / 1e12
    return found
