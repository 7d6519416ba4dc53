"""A callback for the Trainer of transformers: the gradients of its model's own loss, and what is in `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.monitoring.monitor import GradientMonitor


def loss_of(output: Any) -> Tensor:
    """The loss a model of transformers computes itself when it is given labels."""
    loss = output.get("loss") if isinstance(output, Mapping) else output[0]
    if loss is None:
        raise InvalidRequestError(
            "the model returned no loss: give the callback loss_fn=, from the output to the loss."
        )
    found: Tensor = loss
    return found


class GradientMonitorCallback(TrainerCallback):
    """`Trainer(..., callbacks=[GradientMonitorCallback(at=[0], every=1000)])`.

    The batches are what the model was called with. `.grad` is looked at when the Trainer has clipped it to its
    `max_grad_norm`, and judged as clipped.

    Args:
        loss_fn: from the model's output to the loss, as the Trainer computes it.
        options: those of `GradientMonitor`, but for `accumulate` and `clip_norm`, which the Trainer knows.

    Attributes:
        monitor: the monitor of the last `train`, None before the first.
    """

    def __init__(self, loss_fn: Callable[[Any], Any] = loss_of, **options: Any) -> None:
        self.monitor: GradientMonitor | None = None
        self._loss_fn, self._options = loss_fn, options

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts a monitor."""
        model: nn.Module = kwargs["model"]
        clip = args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else None
        self.monitor = GradientMonitor(model, self._loss_fn, clip_norm=clip, **self._options)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks, on scheduled steps."""
        assert self.monitor is not None
        calls = self.monitor.seen
        # With num_items_in_batch each loss is a share of the whole step's; without, the Trainer takes their mean.
        shares = any("num_items_in_batch" in call.kwargs for call in calls)
        self.monitor.step_over(lambda: [dict(call.kwargs) for call in calls], divisor=1 if shares else None)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the monitor."""
        if self.monitor is not None:
            self.monitor.close()
