"""A Lightning callback: the gradients of `training_step`, and what is in `.grad` before the optimizer uses it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.monitoring.monitor import GradientMonitor


class GradientMonitorCallback(Callback):
    """`Trainer(callbacks=[GradientMonitorCallback(at=[0], every=1000)])`.

    J is the sum of what `training_step` returns over the batches of one optimizer step, divided by
    `accumulate_grad_batches` as the trainer does, in a last and shorter window of an epoch too: a note says so there.
    What it logs is not logged again. `.grad` is looked at when the precision plugin has unscaled it, and before it is
    clipped. Under strategies of several processes (DDP, FSDP2 by ModelParallelStrategy) J is the mean of the losses of
    all ranks, each on its own batches, and each rank has the same reports.

    Args:
        log: True writes the figures of each checked step to the trainer's loggers, at its `global_step`; else as in
            `GradientMonitor`.
        options: those of `GradientMonitor`, but for `accumulate` and `group`, which the trainer knows.

    Attributes:
        monitor: the monitor of the last `fit`, None before the first.

    Raises:
        InvalidRequestError: when the training begins, under DeepSpeed or with manual optimization.
    """

    def __init__(self, *, log: Any = None, **options: Any) -> None:
        self.monitor: GradientMonitor | None = None
        self._log, self._options = log, options
        self._pending: list[tuple[Any, int]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts a monitor."""
        if not pl_module.automatic_optimization:
            raise InvalidRequestError(
                "the callback cannot follow manual optimization: use GradientMonitor.of_closure in training_step."
            )
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise InvalidRequestError(
                "the callback cannot follow DeepSpeed, which keeps gradients elsewhere than in .grad: take it out."
            )
        shared = trainer.strategy.model if trainer.world_size > 1 else None  # by which the ranks know each other
        model = shared if isinstance(shared, nn.Module) else pl_module
        log = partial(_write, trainer, trainer.global_step) if self._log is True else self._log
        self.monitor = GradientMonitor.of_closure(model, partial(_loss, pl_module), log=log, **self._options)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Sees what the forward starts from."""
        assert self.monitor is not None
        self._pending.append((batch, batch_idx))
        with trainer.precision_plugin.train_step_context():
            self.monitor.watch()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Checks, on scheduled steps."""
        assert self.monitor is not None
        batches, self._pending = self._pending, []
        try:
            self.monitor.step_over(lambda: _silenced(pl_module, batches), trainer.accumulate_grad_batches)
        finally:
            _restore_log(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the monitor."""
        if self.monitor is not None:
            self.monitor.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the monitor."""
        self.on_train_end(trainer, pl_module)


def _loss(module: LightningModule, batch: tuple[Any, int]) -> Tensor:
    output: Any = module.training_step(*batch)
    loss: Tensor = output["loss"] if isinstance(output, Mapping) else output
    return loss


def _write(trainer: Trainer, first: int, values: dict[str, float], step: int) -> None:
    """Writes to all loggers; a training that is resumed begins with another step than 0."""
    for logger in trainer.loggers:
        logger.log_metrics(values, step=first + step)


def _silenced(module: LightningModule, batches: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """The batches, for a check that is about to call `training_step`: from here on it logs nothing."""
    vars(module).update(log=_log_nothing, log_dict=_log_nothing)
    return batches


def _restore_log(module: LightningModule) -> None:
    for name in ("log", "log_dict"):
        if vars(module).get(name) is _log_nothing:
            del vars(module)[name]


def _log_nothing(*_: Any, **__: Any) -> None:
    """Stands for `log` and `log_dict`."""
