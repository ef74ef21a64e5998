"""The engine's loop: one thread per device takes steps, the main thread watches and publishes.

Crash-only: scores, in-flight marks and quarantine are in the journal, so a new engine goes on where this one
died. Does not write the prior, restart itself or end itself by force: that is the guard's.
"""
import signal
import threading
import time
from typing import NoReturn

import numpy as np
import torch

from ..cache import ram
from ..errors import BudgetTooSmall, DeviceError, text_of
from ..inference.devices import Device, is_lost
from ..limits import Clock
from ..order import Order
from ..report import progress, recorder, terminal
from ..report.contents import Report
from . import plan, summary
from .dispatch import Dispatcher
from .heartbeat import Heartbeat
from .publication import Publication
from .state import open_run
from .step import StepRunner

# Freed heap back to the system: loaders' buffers would stay in it, 50 kB per clip measured
TRIM_EVERY_S = 1.0
LINE_EVERY_S = 1.0  # figures for the progress, which decides what is printed
TICK_S = 0.25
NETS_TOGETHER = 16  # most nets whose weights lie on a GPU at once, beside the next one; our choice


class Engine:
    """One attempt at a run; `execute` once."""

    def __init__(self, order: Order, heartbeat: Heartbeat) -> None:
        self._stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        clock = Clock(started=order.started, started_boot=order.started_boot, offset_s=order.offset_s)
        self._recorder = recorder.Recorder(clock=clock)
        self.run = open_run(order, heartbeat, self._recorder)
        if summary.lacks_clips(self.run.rows.all):
            print(f"[hourglass] {summary.NO_CLIPS}", flush=True)
        self.dispatcher = Dispatcher(self.run, self._left_s, self.out_of_time)
        self.steps = StepRunner(
            bundle=self.run.bundle,
            feed=self.run.feed,
            cores=self.run.cores,
            runtimes=order.state / "runtimes",
            backend=order.backend,
        )
        self._publication = Publication(self.run)
        self._fatal: BaseException | None = None
        self._lost: list[BaseException] = []
        self._peak_ram = 0
        self._progress = progress.Progress()
        self._published_steps = 0
        self._begun = self._last_publish = self._last_line = self._last_trim = time.monotonic()
        self._last_unit = ""

    def execute(self) -> None:
        """Run to the end or to the stop mark, then publish and report.

        Raises  the error of a lost device, after the scores are published: a new engine goes on
        """
        run = self.run
        suspects = [
            run.rows.all[i] for i in run.rows.wanted if run.rows.all[i].clip.id in run.journal.suspects
        ]
        run.feed.load_first(run.recipes().values(), suspects, self.out_of_time)
        if run.board.count() > run.journal.published():  # scores that an earlier engine left unpublished
            self._measure()
            self._publish()
        workers = [threading.Thread(target=self._work, args=(device,), name=device.name, daemon=True)
                   for device in run.devices]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):  # what the last step brings, the end publishes
            self._tick()
            with self.dispatcher.changed:
                self.dispatcher.changed.wait(TICK_S)
        if self._lost and self.dispatcher.waits_aside() and not self.out_of_time():
            self._fatal = self._fatal or self._lost[0]  # a new process has it again, or knows that it is gone
        if self._fatal is not None:
            self._leave(self._fatal)
        self._end()

    def _leave(self, fatal: BaseException) -> NoReturn:
        """Publish and count what is scored, since nobody knows whether a new engine gets that far."""
        try:
            self._measure()
            self.run.heartbeat.begin("publish", self._publication.pace.expected_s)
            self._publish()
        finally:
            raise fatal

    def _end(self) -> None:
        """The last publication, the page and the table."""
        run = self.run
        run.heartbeat.begin("publish", self._publication.pace.expected_s)
        unreached = self.dispatcher.count_untried()
        if unreached and self.out_of_time():
            error = BudgetTooSmall(
                f"{unreached} of {len(run.rows.wanted)} rows were not reached before the run had to end; "
                "they keep the prior. Give more --seconds, or a lighter net"
            )
            self._recorder.error("clock", error)
        used, disk = self._measure()
        self._progress.close(self._state("end", used, disk))
        report = self._publish()
        report = self._publication.write_page(report, self._stopping.is_set)
        self._publication.write_report(report)
        terminal.say(terminal.run_table(report))
        run.feed.store.close()
        run.heartbeat.close()

    def _left_s(self) -> float:
        return self._publication.pace.stop_s(self.run.order.marks) - self._recorder.now()

    def out_of_time(self) -> bool:
        """True once the run must end: told to, past the stop mark, or a device was lost."""
        return self._stopping.is_set() or self._fatal is not None or self._left_s() <= 0

    def _work(self, device: Device) -> None:
        """Take steps until none is left, time is up, or the device is lost."""
        torch.set_num_threads(max(1, self.run.order.limits.cores))
        step = None
        try:
            while (step := self.dispatcher.take(NETS_TOGETHER if device.cuda else 1)) is not None:
                self._await_publication(step)
                stop = self.dispatcher.stop_of(step)
                runs = [self.run.nets[net_id] for net_id in step.net_ids]
                left_s = self.dispatcher.left_of(step)
                outcomes = self.steps.run_all(step, runs, device, stop, self.dispatcher.guess_next, left_s)
                self.dispatcher.finish(step, outcomes)
        except BaseException as error:
            # One of several devices: the others do what they can, but for the nets that it had in hand.
            # Else handed to the main thread, which ends the process with it; all devices stop
            if is_lost(error) and step is not None and self.dispatcher.lose_device(step):
                self._lost.append(error)
                told = f"lost in {', '.join(step.net_ids)} ({text_of(error)}); the other devices go on"
                self._recorder.error(device.name, DeviceError(told))
            else:
                self._fatal = error
        finally:
            with self.dispatcher.changed:
                self.dispatcher.changed.notify_all()

    def _await_publication(self, step: plan.Step) -> None:
        """Wait until what is scored is published, before a net is opened that may end the engine, unless the
        pace forbids it.
        """
        steps = len(self.dispatcher.outcomes)
        pace = self._publication.pace
        untried = any(not self.run.nets[net_id].path for net_id in step.net_ids)
        if untried and pace.allows(time.monotonic() - self._begun, self._left_s()):
            with self.dispatcher.changed:
                self.dispatcher.changed.wait_for(
                    lambda: self._published_steps >= steps or self.out_of_time(), 1.0 + 2 * pace.expected_s)

    def _tick(self) -> None:
        """The main thread's round: memory, a publication when one is due, a line."""
        used, disk = self._measure()
        now = time.monotonic()
        steps = len(self.dispatcher.outcomes)
        pace = self._publication.pace
        due = steps > self._published_steps or now - self._last_publish >= pace.every_s
        if due and pace.allows(now - self._begun, self._left_s()):
            self._last_publish = now
            self._publish()
            with self.dispatcher.changed:
                self._published_steps = steps
                self.dispatcher.changed.notify_all()
        unit = self.run.heartbeat.unit
        if now - self._last_line >= LINE_EVERY_S or unit != self._last_unit:
            self._last_line = now
            self._last_unit = unit
            self._progress.update(self._state(unit, used, disk))

    def _measure(self) -> tuple[int, int]:
        """Give freed memory back, and take the figures of this moment: bytes of memory and of disk in use."""
        run = self.run
        if time.monotonic() - self._last_trim >= TRIM_EVERY_S:
            ram.return_memory()
            self._last_trim = time.monotonic()
        reading = run.meter.read()
        stats = run.feed.store.stats()
        run.meter.own_bytes()  # it remembers the peak
        self._peak_ram = max(self._peak_ram, reading.used_bytes)
        self._recorder.sample(used=reading.used_bytes, store=stats.ram_bytes, limit=reading.limit_bytes,
                              disk=stats.disk_bytes)
        run.heartbeat.scored_rows = int(np.count_nonzero(run.board.scored()))
        run.heartbeat.scores = run.board.count()
        run.heartbeat.quarantined = run.journal.count_quarantined()
        return reading.used_bytes, stats.disk_bytes

    def _publish(self) -> Report:
        """Publish what is there and describe it."""
        began = time.monotonic()
        # What is published outlives a crash: the next engine must not publish less
        for net_id in tuple(self.dispatcher.busy):
            self.run.nets[net_id].save()
        merged = self._publication.publish()
        report = summary.describe(self.run, merged, self.dispatcher.outcomes, self._peak_ram)
        self._publication.write_report(report)
        self._publication.learn(time.monotonic() - began)
        return report

    def _state(self, unit: str, used: int, disk: int) -> progress.State:
        """Figures for the progress line."""
        run = self.run
        missing = {net.net_id: net.lacking().rows for net in run.nets.values() if not net.failed}
        finished = sum(not count for count in missing.values())
        total = len(run.rows.wanted)
        return progress.State(
            t=self._recorder.now(),
            step=unit,
            nets=f"{finished}/{len(run.nets)}",
            total=total,
            done=total - missing[unit] if unit in missing else run.heartbeat.scored_rows,
            scored=sum(net.scored for net in run.nets.values()),
            to_score=total * len(missing),
            ram=used,
            ram_limit=run.order.limits.ram_bytes,
            disk=disk,
            left_s=self.dispatcher.remaining_s(),
            deadline_s=self._left_s(),
        )
