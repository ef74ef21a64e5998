"""The engine: takes steps from the plan until all is done or time is up, and publishes what is there.

Owns the run's loop: one worker thread per device, the main thread watches the clock, blends, publishes and
reports. Crash-only: scores, in-flight marks and quarantine are in the journal, so a new engine goes on where
this one died. Does not write the prior, restart itself or end itself by force: that is the guard's.
"""
from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache import ram
from ..errors import BudgetTooSmall, ClipError, HourglassError
from ..files import write_atomically
from ..inference import backends
from ..report import progress, recorder
from ..report.page import encode_page, page
from ..report.pictures import draw_rows
from ..scores import blend, submission
from . import plan, summary
from .journal import Heartbeat
from .state import LOADING_S, Scene, open_scene
from .step import run_step

PUBLISH_EVERY_S, PUBLISH_SHARE = 60.0, 0.05  # of the budget: a short run shows its first scores early, too
# freed heap back to the system: loaders' buffers would stay in it, 50 kB per clip measured
TRIM_EVERY_S = 1.0
LINE_EVERY_S = 1.0  # figures for the progress, which decides what is printed
PAGE_S = 8.0  # report.html may take this long
TICK_S = 0.25


class Engine:
    """One attempt at a run; `execute` once."""

    def __init__(self, run: dict[str, Any], heartbeat: Heartbeat):
        self.run = run
        self.stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        self.scene: Scene = open_scene(run, heartbeat)
        self.recorder, self.marks = self.scene.recorder, run["marks"]
        if summary.lacks_clips(self.scene):
            print(f"[hourglass] {summary.NO_CLIPS}", flush=True)
        self.publisher = submission.Publisher(
            Path(run["working"]) / "submission.csv", submission.read_sample(Path(run["sample"]["path"])),
            self.scene.ensemble.output, self.scene.ensemble.classes)
        classes = len(self.scene.ensemble.classes)
        self.prior = np.array(self.scene.manifest.prior or (1.0 / classes,) * classes)
        self.costs = plan.net_costs(self.scene.manifest, gpu=any(d.cuda for d in self.scene.devices))
        self.speeds = plan.Speeds()
        self.outcomes: list[plan.Outcome] = []
        self.busy: set[str] = set()
        self.changed = threading.Condition()
        self.fatal: BaseException | None = None
        self.publish_due = False
        self.peak_ram = 0
        self.progress = progress.Progress()
        self.last_publish = self.last_line = self.last_trim = time.monotonic()
        self.publish_every_s = max(1.0, min(PUBLISH_EVERY_S, PUBLISH_SHARE * self.marks["budget_s"]))
        self.last_unit = ""

    def execute(self) -> None:
        """Run to the end or to the stop mark, then publish and report.

        Raises  the error of a lost device, after the scores are saved: a new engine goes on
        """
        self._redo_suspects()
        workers = [threading.Thread(target=self._work, args=(device,), name=device.name, daemon=True)
                   for device in self.scene.devices]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            with self.changed:
                self.changed.wait(TICK_S)
            self._tick()
        if self.fatal is not None:
            raise self.fatal
        self.scene.heartbeat.step("publish")
        self._name_unreached()
        self._tick(final=True)
        self.progress.close()
        self._write_page()
        recorder.say(recorder.table(self.described))
        self.scene.store.close()
        self.scene.heartbeat.close()

    def _name_unreached(self) -> None:
        """Say how many rows no net has reached when time ran out."""
        _, uncovered = self._todo()
        if uncovered and self.out_of_time():
            self.recorder.error(
                "clock",
                BudgetTooSmall(
                    f"{uncovered} of {len(self.scene.wanted)} rows were not reached before the run had to end; they keep the prior. "
                    "Give more --seconds, or a lighter net"
                ),
            )

    def out_of_time(self) -> bool:
        return self.stopping.is_set() or self.fatal is not None or self.recorder.now() >= self.marks["stop_s"]

    def _redo_suspects(self) -> None:
        """Clips in flight at a crash are loaded first, alone, on one thread: a second crash then names the
        culprit.
        """
        scene = self.scene
        suspects = [scene.rows[i] for i in scene.wanted if scene.rows[i].clip.id in scene.journal.suspects]
        for recipe in scene.recipes.values():
            for stage in recipe.stages.values():
                for row in suspects:
                    if self.out_of_time():
                        return
                    try:
                        scene.store.get(stage.fe, row)
                    except ClipError as error:
                        scene.lose(row, error)

    # -- workers
    # --------------------------------------------------------------------------------------------------

    def _work(self, device: backends.Device) -> None:
        """Take steps until none is left, time is up, or the device is lost."""
        torch.set_num_threads(max(1, self.scene.limits.cores))
        try:
            while not self.out_of_time():
                step = self._take_step()
                if step is None:
                    return
                self._finish_step(step, run_step(self.scene, step, device, self._stop_of(step)))
        except Exception as error:
            # handed to the main thread, which ends the process with it; the other devices stop too
            self.fatal = error
        finally:
            with self.changed:
                self.changed.notify_all()

    def _stop_of(self, step: plan.Step) -> Callable[[], bool]:
        """Tells a step when to leave: time is up, or it takes so long that the plan wants another choice.

        Not before its first row: a step that has learned nothing would only be chosen again, and a loader
        that hangs would look like one step after another.
        """
        until, net = time.monotonic() + step.patience_s, self.scene.nets[step.net_id]
        before = net.rows
        return lambda: self.out_of_time() or (time.monotonic() > until and net.rows > before)

    def _take_step(self) -> plan.Step | None:
        """The next step for an idle device; waits while another device's step may open new ones."""
        with self.changed:
            while not self.out_of_time():
                todo, uncovered = self._todo()
                step = plan.next_step(
                    self.costs,
                    todo,
                    self.speeds,
                    left_s=self.marks["stop_s"] - self.recorder.now(),
                    uncovered=uncovered,
                    busy=self.busy,
                    row_independent=self.scene.ensemble.row_independent,
                )
                if step is not None:
                    self.busy.add(step.net_id)
                    return step
                if not self.busy:
                    return None
                self.changed.wait(TICK_S)
        return None

    def _finish_step(self, step: plan.Step, outcome: plan.Outcome) -> None:
        scene = self.scene
        with self.changed:
            self.busy.discard(step.net_id)
            self.outcomes.append(outcome)
            cost = next(c for c in self.costs if c.net_id == step.net_id)
            if outcome.done and not cost.inputs:
                share = outcome.done / max(1, outcome.rows)
                done = plan.Todo(rows=outcome.done, frames=share * float(scene.frames[step.member].sum()))
                setup_s = scene.nets[step.net_id].setup_s
                spent = outcome.seconds - outcome.loading_s - setup_s
                self.speeds = self.speeds.learn(step.member, plan.expected(cost, done), spent, setup_s)
            self._forget_finished_frontends()
            self.publish_due = True
            self.changed.notify_all()

    def _todo(self) -> tuple[dict[str, plan.Todo], int]:
        """What every live net still lacks, and how many rows no net has scored."""
        scene = self.scene
        todo: dict[str, plan.Todo] = {}
        for net_id, net in scene.nets.items():
            rows = [] if net.failed else scene.missing(net_id)
            if net.stacker:
                complete = blend.stacker_rows(net.part, scene.ensemble, scene.board)  # type: ignore[arg-type]
                todo[net_id] = plan.Todo(rows=len(np.intersect1d(rows, complete)), frames=0.0)
                continue
            frames = scene.frames[net.part.name][rows].sum() if rows else 0.0
            todo[net_id] = plan.Todo(
                rows=len(rows), frames=float(frames), loading_s=self._loading_s(net.part.name, rows)
            )
        return todo, int(scene.untried().sum())

    def _loading_s(self, member: str, rows: list[int]) -> float:
        """Seconds of decoding and front end for rows whose arrays nobody has produced yet."""
        scene = self.scene
        fresh = scene.fresh(member, rows)
        return float(scene.seconds[fresh].sum()) * self._loading_rate() if len(fresh) else 0.0

    def _loading_rate(self) -> float:
        """Wall seconds per second of audio for one front end, as measured so far."""
        seconds, audio = np.sum(list(self.scene.loading.values()) or [[0.0, 0.0]], axis=0)
        return float(seconds / audio) if audio > 0 else LOADING_S

    def _forget_finished_frontends(self) -> None:
        """Drop a front end's arrays once no live net needs them; tell the store how often the others will be
        read.
        """
        scene = self.scene
        uses, known = Counter[str](), dict[str, Any]()
        for name, recipe in scene.recipes.items():
            live = sum(
                not n.failed and bool(scene.missing(n.net_id))
                for n in scene.nets.values()
                if n.part.name == name
            )
            for stage in recipe.stages.values():
                known[stage.fe.key] = stage.fe
                uses[stage.fe.key] += live
        for key, fe in known.items():
            if uses[key]:
                scene.store.expect(fe, uses[key])
            else:
                scene.store.forget(fe)

    # -- publication
    # ----------------------------------------------------------------------------------------------

    def _tick(self, final: bool = False) -> None:
        """The main thread's round: memory, a line, a publication when one is due."""
        scene = self.scene
        if time.monotonic() - self.last_trim >= TRIM_EVERY_S:
            ram.return_memory()
            self.last_trim = time.monotonic()
        reading, stats = scene.meter.read(), scene.store.stats()
        scene.meter.own_bytes()  # it remembers the peak
        self.peak_ram = max(self.peak_ram, reading.used_bytes)
        self.recorder.sample(used=reading.used_bytes, store=stats["ram_bytes"], limit=reading.limit_bytes,
                             disk=stats["disk_bytes"])
        scored = np.logical_or.reduce([scene.board.covered(net_id) for net_id in scene.nets])
        scene.heartbeat.scored_rows = int(scored.sum())
        scene.heartbeat.quarantined = len(scene.journal.quarantined) + len(scene.journal.dropped)
        now = time.monotonic()
        if final or self.publish_due or now - self.last_publish >= self.publish_every_s:
            self.publish_due, self.last_publish = False, now
            # what is published outlives a crash: the next engine must not publish less
            for net_id in tuple(self.busy):
                scene.journal.save_scores(net_id, scene.board.get(net_id))
            with self.recorder.stage("publish", device="main"):
                merged = self._publish()
            self.described = summary.describe(scene, merged, self.outcomes, self.peak_ram)
            self._write_report()
        if not final and (now - self.last_line >= LINE_EVERY_S or scene.heartbeat.unit != self.last_unit):
            self.last_line, self.last_unit = now, scene.heartbeat.unit
            self.progress.update(self._state(reading.used_bytes, stats["disk_bytes"]))

    def _publish(self) -> blend.Blend:
        """Blend what is there and replace the submission; a refused candidate leaves the old one and is
        named.
        """
        scene = self.scene
        finished = {net_id for net_id in scene.nets if not scene.missing(net_id)}
        merged = blend.blend(scene.ensemble, scene.board, self.prior, finished)
        values = merged.values
        if scene.ensemble.output.smoothing:
            by_clip: dict[str, list[int]] = {}
            for i in sorted(range(len(scene.rows)), key=lambda i: scene.rows[i].start or 0):
                by_clip.setdefault(scene.rows[i].clip.id, []).append(i)
            values = blend.smooth(values, by_clip.values(), scene.ensemble.output.smoothing)
        try:
            self.publisher.publish(values)
            self.recorder.publications.append(round(self.recorder.now(), 2))
        except HourglassError as error:
            self.recorder.error("submission.csv", error)
        return merged

    def _state(self, used: int, disk: int) -> progress.State:
        """Figures for the progress line."""
        scene, unit = self.scene, self.scene.heartbeat.unit
        with self.changed:
            todo, _ = self._todo()
            left = plan.remaining(self.costs, todo, self.speeds) / len(scene.devices)
        missing = {net_id: len(scene.missing(net_id)) for net_id, net in scene.nets.items() if not net.failed}
        done = sum(not count for count in missing.values())
        total, t = len(scene.wanted), self.recorder.now()
        return progress.State(
            t=t, step=unit, nets=f"{done}/{len(scene.nets)}", total=total,
            done=total - missing[unit] if unit in missing else scene.heartbeat.scored_rows,
            scored=sum(n.rows for n in scene.nets.values()), to_score=total * len(missing), ram=used,
            ram_limit=scene.limits.ram_bytes, disk=disk, left_s=left, deadline_s=self.marks["stop_s"] - t)

    def _write_page(self) -> None:
        """report.html beside report.json, if there is time: the last thing, once, and no failure of it is one
        of the run.
        """
        scene, begun = self.scene, Path(self.run["state"]) / "page"
        until = min(self.recorder.now() + PAGE_S, self.marks["term_s"])

        def late() -> bool:
            return self.stopping.is_set() or self.recorder.now() > until - PAGE_S / 2

        if late() or begun.exists():
            reason = "an engine died while it was drawn" if begun.exists() else "too little time was left"
            self.described["page"] = f"report.html was not written: {reason}"
        else:
            begun.touch()
            scene.heartbeat.step("page", PAGE_S)
            try:
                shown = {entry["row"] for entry in self.described["uncertain"]}
                pictures = draw_rows([row for row in scene.rows if row.id in shown], scene.max_seconds, late)
                write_atomically(
                    Path(self.run["working"]) / "report.html", encode_page(page(self.described, pictures))
                )
                self.described["page"] = "report.html"
            except Exception as error:
                # the submission is complete; report.json says why the page is not there
                self.described["page"] = f"report.html was not written: {type(error).__name__}: {error}"
        self._write_report()

    def _write_report(self) -> None:
        """report.json; an output disk that refuses it costs the report, not the run."""
        try:
            write_atomically(
                Path(self.run["working"]) / "report.json",
                (json.dumps(self.described, indent=1) + "\n").encode(),
            )
        except OSError as error:
            if not self.recorder.counts["ReportUnwritable"]:
                self.recorder.fault(
                    "ReportUnwritable",
                    "report.json",
                    f"{error.strerror}; the submission is not touched by this",
                )
