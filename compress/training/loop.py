"""The one training loop. A task says what a batch, a loss and an evaluation are; the loop does the rest."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from edgekit.compress.forecast.outlook import Outlook
from edgekit.compress.guard.guard import Trouble, ran_out_of_patience
from edgekit.compress.guard.plan_ahead import refuse_restarts
from edgekit.compress.guard.watch import MOST_ROLLBACKS, DivergedError, TroubleError, Watch
from edgekit.compress.parallel.agreement import refuse_other_training
from edgekit.compress.parallel.processes import join
from edgekit.compress.recipe import FitConfig
from edgekit.compress.show.display import Display, Silent
from edgekit.compress.show.tensorboard import Board
from edgekit.compress.training.allocator import memory_kept
from edgekit.compress.training.checkpointing import KEPT, Cadence, Checkpoints, Due, Entry
from edgekit.compress.training.fast_layers import use_own_layers
from edgekit.compress.training.run_folder import MutedRunFolder, RunFolder
from edgekit.compress.training.run_lock import locked
from edgekit.compress.training.schedule import factor
from edgekit.compress.training.step import Steps, Wishes
from edgekit.compress.training.stopping import StopRequest, stop_signals
from edgekit.compress.training.task import Task
from edgekit.compress.training.training_state import (
    FitResult,
    Position,
    TrainingState,
    epoch_row,
    parameter_groups,
    pick_device,
)
from edgekit.errors import LoadError, StoppedError

__all__ = ["DivergedError", "FitResult", "Task", "fit", "parameter_groups", "pick_device"]

STEPS_PER_ROW = 50


def fit(
    task: Task, config: FitConfig, run: RunFolder, *, display: Display | None = None, resume: bool = False
) -> FitResult:
    """Train `task.model` and leave the best checkpoint and the metrics in the run folder.

    Weights are evaluated and saved as their moving average where `config.ema_decay` is set.

    Under `torchrun` or `accelerate launch` every process calls this alike. Each step's batch is divided between them,
    and the result is that of one process up to the order of floating-point sums (nets with dropout or stochastic depth
    aside, which draw other masks). Only the main process writes; a run may be resumed in any number of processes.

    Args:
        task: what to train.
        config: how.
        run: where the results go.
        display: shows progress.
        resume: continue from the newest whole training state of this run folder, within an epoch too; on a CPU the
            weights end bit for bit as they would have without the interruption.

    Raises:
        DivergedError: loss or gradient became NaN or infinite, or `config.guard` stopped at other serious trouble; the
            best checkpoint and the last good state stay.
        LoadError: `resume` and the state cannot be read.
        LockedError: another process trains into this folder.
        StoppedError: Ctrl-C or SIGTERM; everything is saved.
        UsageError: the planned rate jumps up after warm-up, and `config.allow_restarts` is false; the task cannot be
            divided; or the processes disagree.
        WriteError: the disk is full; the last good state stays.
        SystemExit: another process failed, and has said why.
    """
    processes = join(pick_device(config))
    with processes.together(), memory_kept():
        refuse_other_training(processes, config.model_dump() | {"steps per epoch": task.steps_per_epoch}, task.model)
        try:
            if not processes.is_main:
                return _Fit(task, config, MutedRunFolder(run.path), Silent()).run(resume=resume)
            with locked(run.path):
                return _Fit(task, config, run, display or Silent()).run(resume=resume)
        finally:
            use_own_layers(task.model)


class _Fit:
    """One call of `fit`: the state that its steps share."""

    def __init__(self, task: Task, config: FitConfig, run: RunFolder, display: Display) -> None:
        self.task, self.config, self.folder, self.display = task, config, run, display
        self.state = TrainingState(task, config)
        self.processes = self.state.processes
        self.watch = Watch(self.state, config, run, self.display)
        self.steps = Steps(task, self.state, self.watch, config)
        self.checkpoints = Checkpoints(run.last, display.warn)
        self.due = Due(Cadence.parse(config.checkpoint_every) if config.checkpoint_every else None)
        self.outlook = Outlook(config, task.metric)
        self.request = StopRequest()
        self.board: Board | None = None
        self.group_started, self.group_images = 0.0, 0

    def run(self, *, resume: bool) -> FitResult:
        started = time.perf_counter()
        state, steps = self.state, self.task.steps_per_epoch
        if resume:
            self._restore()
        done_steps = (state.position.epoch - 1) * steps + state.position.step
        refuse_restarts(self.config, steps, done_steps=done_steps)
        if not resume and self.processes.is_main:
            self.checkpoints.clear()
        if self.config.guard == "rollback" and not done_steps:
            self._save_start()  # there is always something to go back to
        if self.config.tensorboard and self.processes.is_main:
            self.board = Board(self.folder.path / "tensorboard", done_steps)
        self.display.start(self.config.epochs, steps, done_steps)
        try:
            with stop_signals() as self.request:
                while state.position.epoch <= self.config.epochs and not self._enough():
                    self._epoch()
        finally:
            self.display.finish()
            if self.board is not None:
                self.board.close()
        state.result.seconds = time.perf_counter() - started
        return state.result

    def _save_start(self) -> None:
        try:
            self._save()
        except TroubleError as e:
            raise DivergedError(f"{e.trouble.message}: the weights to start from are damaged") from e

    def _epoch(self) -> None:
        try:
            self._train_epoch()
        except TroubleError as e:
            self._act(e.trouble)

    def _train_epoch(self) -> None:
        """Train what is left of the epoch, evaluate, record, save."""
        position = self.state.position
        epoch, before, started = position.epoch, position.seconds, time.perf_counter()
        self.state.model.train()
        self.group_started, self.group_images = started, 0
        history = [row[self.task.metric] for row in self.state.result.rows if self.task.metric in row]
        for batches in self.steps.batches(epoch, position.step):
            wishes = self._step(batches, history)
            position.seconds = before + time.perf_counter() - started
            if wishes.signal is not None:
                self._stop(wishes.signal)
            if wishes.save and position.step < self.task.steps_per_epoch:  # else the epoch's end saves
                self._save()
        row = epoch_row(position, self.state.device)
        row["evaluated"], row["best"] = epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs, False
        if row["evaluated"]:
            row.update(self._evaluate(epoch))
        row["seconds"] = before + time.perf_counter() - started
        self.watch.epoch([*self.state.result.rows, row], self.task.metric)
        self.state.result.rows.append(row)
        self._write(row)
        self.state.position = Position(epoch + 1)
        self._save()
        self.display.epoch(row)
        if self.display.forecasts and (line := self.outlook.line(self.state.result.rows)) is not None:
            self.display.note(line)
        number = self.steps.agree(Wishes(self.request.signal)).signal
        if number is not None and epoch < self.config.epochs:
            self._stop(number, saved=True)

    def _step(self, batches: Iterable[Any], history: list[float]) -> Wishes:
        """Take one optimizer step, add it to the epoch's sums, and return what is to be done after it."""
        position, steps = self.state.position, self.task.steps_per_epoch
        at = position.epoch - 1 + position.step / steps
        planned = factor(self.config.schedule, at, self.config.epochs, history)
        position.lr = self.config.lr * planned * self.state.lr_scale
        due = self.due.step()
        taken = self.steps.take(
            batches,
            position.lr,
            (position.epoch - 1) * steps + position.step,
            lambda: Wishes(self.request.signal, due),
        )
        position.add(taken.parts, taken.grad_norm, taken.count)
        self.group_images += taken.count
        self.display.step(position.epoch, taken.count, taken.parts["loss"])
        if position.step % STEPS_PER_ROW == 0:
            self._write_step_row(taken.parts, taken.grad_norm)
        if self.processes.world == 1 and self.request.signal is not None:  # it may have come during the step
            return Wishes(self.request.signal, due)
        return taken.wishes

    def _enough(self) -> bool:
        """Return whether the metric has not got better for too long, and say so."""
        result, patience = self.state.result, self.config.patience
        if not ran_out_of_patience(result.rows, self.task.metric, patience):
            return False
        self.display.note(
            f"stopped early after epoch {self.state.position.epoch - 1}: no better {self.task.metric} than "
            f"{result.best:.4g} of epoch {result.best_epoch} in {patience} evaluations"
        )
        return True

    def _act(self, trouble: Trouble) -> None:
        """Go back to a state from before the trouble, or end the run."""
        result = self.state.result
        if self.config.guard == "rollback" and self.watch.rollbacks < MOST_ROLLBACKS:
            # trouble again: the newest state may have it in already, so take the one before
            entry = self._go_back(skip=min(self.watch.rollbacks, KEPT - 1))
            self.watch.roll_back(trouble, f"epoch {entry.epoch}, step {entry.step}")
            return
        best = f"of epoch {result.best_epoch}" if result.best_epoch else "that there was not yet"
        again = f" after {self.watch.rollbacks} rollbacks" if self.watch.rollbacks else ""
        raise DivergedError(
            f"{trouble.message}{again}. The best checkpoint, {best}, stays in {self.folder.path}. Lower --lr, or set "
            f"clip_norm in the recipe"
        )

    def _go_back(self, *, skip: int) -> Entry:
        """Restore the newest state but `skip`, keeping the best result and the lower rate; forget what came after."""
        before, scale = self.state.result, self.state.lr_scale
        entry, content = self.processes.from_main(lambda: list(self.checkpoints.load())[: skip + 1][-1])
        self.watch.restore(self.state.restore(content, str(self.folder.last / entry.name)))
        result = self.state.result
        if before.best > result.best:  # its checkpoint is on the disk
            result.best, result.best_epoch = before.best, before.best_epoch
        self.state.lr_scale = min(scale, self.state.lr_scale)
        if self.processes.is_main:
            self.checkpoints.forget_after(entry)
        self.folder.keep_metrics(entry.epoch, entry.step)
        self.state.optimizer.zero_grad()
        return entry

    def _write_step_row(self, parts: Mapping[str, float], grad_norm: float) -> None:
        position, now = self.state.position, time.perf_counter()
        self._write(
            {"kind": "step", "epoch": position.epoch, "step": position.step, "lr": position.lr, "grad_norm": grad_norm}
            | {name: value for name, value in parts.items() if not name.startswith("_")}
            | {"images_per_s": self.group_images / (now - self.group_started)}
        )
        self.group_started, self.group_images = now, 0

    def _write(self, row: dict[str, Any]) -> None:
        self.folder.append_metrics(row)
        if self.board is not None:
            position = self.state.position
            self.board.add(row, (position.epoch - 1) * self.task.steps_per_epoch + position.step)

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        """Evaluate the weights that count, and save them if they are the best so far."""
        model, result = self.state.evaluated.eval(), self.state.result
        with torch.no_grad():
            own = dict(self.task.evaluate(model, self.state.device))
        values = self.processes.from_main(lambda: own)  # decisions hang on them: not one bit may differ
        value = values[self.task.metric]
        better = value > result.best
        if better:
            result.best, result.best_epoch = value, epoch
            if self.processes.is_main:
                self.task.save(self.folder.path / self.task.checkpoint_name, model)
        result.last = value
        return {**values, "best": better}

    def _save(self) -> None:
        self.watch.weights()
        if self.processes.is_main:
            position, guard = self.state.position, self.watch.state()
            self.checkpoints.save(
                lambda stream: self.state.write(stream, guard), epoch=position.epoch, step=position.step
            )
        self.due.saved()

    def _restore(self) -> None:
        """Continue from the newest state that can be read, or from the start where there is none yet."""
        refused: LoadError | None = None
        for entry, content in self.processes.each_from_main(self.checkpoints.load):
            name = str(self.folder.last / entry.name)
            try:
                self.watch.restore(self.state.restore(content, name))
            except LoadError as e:
                if entry.sha256:  # whole, so another one will not fit either
                    raise
                refused = e
                self.display.warn(f"{e}; going back to the one before")
                continue
            self.folder.keep_metrics(entry.epoch, entry.step)
            return
        if refused is not None:
            raise refused
        self.folder.keep_metrics(1, 0)  # killed before the first state was written: start over

    def _stop(self, number: int, *, saved: bool = False) -> None:
        position = self.state.position
        if not saved:
            self._save()
        raise StoppedError(
            f"stopped in epoch {position.epoch} after {position.step} of its {self.task.steps_per_epoch} steps; "
            f"everything is saved in {self.folder.path}: go on with --resume",
            number,
        )
