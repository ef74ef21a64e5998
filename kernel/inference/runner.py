"""A net in the way it runs on a device: which precision, and what happens when the fast way fails.

Owns `Runner`: the check of half precision against fp32, the fall-back, rows that overflow. How a net is made
fast is `backends`; how batches reach a device is `staging`; what devices' errors mean is `devices`.
"""
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from .devices import Device, is_lost, is_out_of_memory

Inputs = Mapping[str, torch.Tensor]
Run = Callable[[Inputs, torch.Tensor | None], torch.Tensor]
AGREEMENT_FP32 = 1e-5  # between back ends, relative to the largest output or 1
AGREEMENT_HALF = 2e-2  # half precision against fp32, relative to the largest output or 1
LEAST_PROBABILITY = 1e-30  # what a mean of scores takes for nothing: a smaller one counts as this
CHECK_ROWS = 256  # rows of the first batch on which half precision is checked and timed
FASTER = 0.95  # half precision must take less than this share of the time of fp32


@dataclass
class Runner:
    """A net ready to run: inputs -> logits or probabilities, f32[B, K].

    path           what ran, for the report ("torch cpu, folded, channels-last")
    run            the fast way; exact: the way that it must agree with
    half           True while half precision is in use (CUDA only)
    probabilities  True where the net gives probabilities: they are compared as logarithms
    timed          True where half precision must also prove faster than fp32; nets like this one need not
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
    timed: bool = False
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
        """f32[B, K] where the inputs lie, not waited for, but for the first batch in half precision.

        Any error of the half path but a full memory or a lost device means fp32 from now on.
        """
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

    def _check_half(self, inputs: Inputs, frames: torch.Tensor | None) -> None:
        """Compare half precision with fp32 on the first rows: fp32 for good where it is off, or no faster."""
        inputs = {k: v[:CHECK_ROWS] for k, v in inputs.items()}
        frames = None if frames is None else frames[:CHECK_ROWS]
        fast = self.run(inputs, frames).float()
        slow = self.exact(inputs, frames).float()
        self.agreement = self._apart(fast, slow)
        if not self.agreement <= AGREEMENT_HALF:
            kind = "log-probabilities" if self.probabilities else "fp32"
            self.give_up_half(f"half precision differed from {kind} by {self.agreement:.2g}, "
                              f"above {AGREEMENT_HALF}")
        elif self.timed:
            half_s = self._seconds(self.run, inputs, frames)
            full_s = self._seconds(self.exact, inputs, frames)
            if half_s > FASTER * full_s:
                times = f"{1000 * half_s:.1f} ms where fp32 took {1000 * full_s:.1f} ms"
                self.give_up_half(f"half precision took {times}")

    def _apart(self, fast: torch.Tensor, slow: torch.Tensor) -> float:
        """Largest difference over the largest value or 1; of logarithms where these are probabilities."""
        if self.probabilities:
            fast = fast.clamp(min=LEAST_PROBABILITY).log()
            slow = slow.clamp(min=LEAST_PROBABILITY).log()
        return float((fast - slow).abs().max() / slow.abs().max().clamp(min=1.0))

    def _seconds(self, run: Run, inputs: Inputs, frames: torch.Tensor | None) -> float:
        """Seconds of one forward that has run before, waited for."""
        self._wait()
        began = time.perf_counter()
        run(inputs, frames)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.cuda:
            torch.cuda.synchronize(self.device.name)
