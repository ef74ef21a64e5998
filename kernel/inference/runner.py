"""A net in the way it runs on a device: which precision, and what happens when the fast way fails.

Owns `Runner`: taking a way on the first batch, the fall-back to fp32, rows that overflow. How a net is made
fast is `backends`, the choice `ways`; how batches reach a device is `staging`; what devices' errors mean is
`devices`.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from . import ways
from .devices import Device, is_lost, is_out_of_memory
from .ways import AGREEMENT_FP32, AGREEMENT_HALF, Inputs, Precision, Run, Way

__all__ = ["AGREEMENT_FP32", "AGREEMENT_HALF", "Inputs", "Run", "Runner"]


@dataclass
class Runner:
    """A net ready to run: inputs -> logits or probabilities, f32[B, K].

    path           what ran, for the report ("torch cpu, folded, channels-last")
    run            the fast way; exact: the way that it must agree with
    half           True while half precision is in use (CUDA only)
    probabilities  True where the net gives probabilities: they are compared as logarithms
    ways           tried on the first batch: the fastest that agrees with `exact` is taken; () = chosen
    precision      what the member's nets have agreed on, shared by them
    own_lengths    True where the net takes own lengths on the host, so that no layer waits for a device
    reruns         rows computed again in fp32 after a non-finite half-precision result
    recorded       True when no Python of the net runs in a forward: several threads may call it at once
    """

    device: Device
    path: str
    run: Run
    exact: Run
    half: bool = False
    reruns: int = 0
    agreement: float | None = None
    notes: list[str] = field(default_factory=list)
    recorded: bool = False
    probabilities: bool = False
    ways: Sequence[Way] = ()
    precision: Precision = field(default_factory=Precision)
    own_lengths: bool = True

    def __call__(self, inputs: Inputs, frames: torch.Tensor | None = None) -> np.ndarray:
        """f32[B, K] on the host; frames i64[B] own lengths where the batch is padded."""
        with torch.inference_mode():
            out = self.launch(inputs, frames)
            sound = torch.isfinite(out).flatten(1).all(dim=1)
            if self.half and not sound.all():
                bad = torch.nonzero(~sound)[:, 0]
                part = {k: v[bad] for k, v in inputs.items()}
                again = self.launch_exact(part, None if frames is None else frames[bad.to(frames.device)])
                out = out.index_copy(0, bad, again)
            return out.cpu().numpy()

    @torch.inference_mode()
    def launch(self, inputs: Inputs, frames: torch.Tensor | None = None) -> torch.Tensor:
        """f32[B, K] where the inputs lie, not waited for, but for the first batch, on which ways are tried.

        Any error of the half path but a full memory or a lost device means fp32 from now on.
        """
        if self.ways:
            self._choose(inputs, frames)
        if self.half:
            try:
                if self.agreement is None:
                    self._check_half(inputs, frames)
                if self.half:
                    return self.run(inputs, frames).float()
            except Exception as error:
                if is_out_of_memory(error) or is_lost(error):
                    raise
                self.give_up_half(f"half precision failed ({type(error).__name__}: {str(error)[:200]})")
        return self.run(inputs, frames).float()

    @torch.inference_mode()
    def launch_exact(self, inputs: Inputs, frames: torch.Tensor | None = None) -> torch.Tensor:
        """f32[B, K] of rows that half precision could not hold, in fp32."""
        self.reruns += len(next(iter(inputs.values())))
        return self.exact(inputs, frames).float()

    def give_up_half(self, reason: str) -> None:
        """fp32 from now on, and why."""
        self.half = False
        self.run = self.exact
        self.path = self.path.replace("fp16, channels-last", "fp32").replace("fp16", "fp32")
        self.notes.append(f"{reason}; fp32 is used")

    def _choose(self, inputs: Inputs, frames: torch.Tensor | None) -> None:
        """The fastest way that agrees with fp32 on the first rows, from now on."""
        base = self.path.removesuffix(f", {ways.EXACT}")
        given = self.probabilities, self.precision, self.device, self.notes
        try:
            chosen = ways.choose(self.ways, self.exact, inputs, frames, *given)
        except Exception as error:
            if not is_out_of_memory(error) or len(next(iter(inputs.values()))) > 1:
                raise
            # A second copy of the weights is too much: the row itself may still fit
            self.notes.append(f"no memory to try other ways ({str(error)[:80]}); fp32 is used")
            chosen = None
        self.ways = ()
        if chosen is not None:
            self.run = chosen.run
            self.half = chosen.way.half
            self.agreement = chosen.apart
            self.path = f"{base}, {chosen.way.name}"

    def _check_half(self, inputs: Inputs, frames: torch.Tensor | None) -> None:
        """Compare half precision with fp32 on the first rows: fp32 for good where it is off."""
        inputs, frames = ways.first_rows(inputs, frames)
        fast = self.run(inputs, frames).float()
        self.agreement = ways.differ(fast, self.exact(inputs, frames).float(), self.probabilities)
        if not self.agreement <= AGREEMENT_HALF:
            kind = "log-probabilities" if self.probabilities else "fp32"
            self.give_up_half(f"half precision differed from {kind} by {self.agreement:.2g}, "
                              f"above {AGREEMENT_HALF}")
