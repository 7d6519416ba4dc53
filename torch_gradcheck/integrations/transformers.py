"""A callback for the Trainer of transformers: the gradients of its model's own loss, and what is in `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.monitoring.monitor import GradientMonitor
from torch_gradcheck.request import positive_number

IGNORED = -100
"""The label of a token that takes no part in the loss."""

ITEMS = "num_items_in_batch"
"""The argument by which the Trainer tells a model the number of labelled tokens in all batches of the step."""

MEANS_OVER_TOKENS = ("ForCausalLMLoss", "ForMaskedLMLoss", "ForTokenClassification")
"""The loss functions of transformers that are means over the labelled tokens."""


def loss_of(output: Any) -> Tensor:
    """The loss a model of transformers computes itself when it is given labels."""
    loss = output.get("loss") if isinstance(output, Mapping) else output[0]
    if loss is None:
        raise InvalidRequestError(
            "the model returned no loss: give the callback loss_fn=, from the output to the loss."
        )
    found: Tensor = loss
    return found


def labelled_tokens(model: nn.Module, arguments: Mapping[str, Any]) -> int:
    """The number of tokens that the model's own loss is a mean over: those whose label is not -100."""
    shifted = _loss_name(model) == "ForCausalLMLoss" and not _config(model, "is_encoder_decoder")
    if "shift_labels" in arguments:
        return int(arguments["shift_labels"].ne(IGNORED).sum())
    labels: Tensor = arguments["labels"]
    return int((labels[..., 1:] if shifted else labels).ne(IGNORED).sum())


def _is_mean_over_tokens(model: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Whether the model's own loss is a mean over labelled tokens, and of nothing besides."""
    labels = arguments.get("labels")
    rows_of_tokens = isinstance(labels, Tensor) and labels.dim() > 1 and not labels.is_floating_point()
    routed = _config(model, "output_router_logits")  # their loss has another term
    return rows_of_tokens and not routed and _loss_name(model) in MEANS_OVER_TOKENS


def _loss_name(model: nn.Module) -> str:
    return str(getattr(getattr(model, "loss_function", None), "__name__", ""))


def _config(model: nn.Module, name: str) -> bool:
    return bool(getattr(getattr(model, "config", None), name, False))


def loss_scale(args: TrainingArguments, model: nn.Module) -> float:
    """What the Trainer multiplies shares of all ranks' tokens by, since the ranks' gradients are averaged after."""
    if not args.average_tokens_across_devices:
        return 1.0
    return float(args.world_size // (getattr(model, "tp_size", None) or 1))  # its ranks share batches


class GradientMonitorCallback(TrainerCallback):
    """`Trainer(..., callbacks=[GradientMonitorCallback(at=[0], every=1000)])`.

    The batches are what the model was called with. `.grad` is looked at when the Trainer has clipped it to its
    `max_grad_norm`, and judged as clipped. Where gradients are accumulated, J is the mean over all labelled tokens of
    the optimizer step: a model that is given `num_items_in_batch` returns each batch's share of it, and one that is
    not returns means, which are weighted by the numbers of their tokens. The mean of these means is a mistake then.

    Under DistributedDataParallel and FSDP2 the batches are those of all ranks, and each of them has the same reports: J
    is the mean over the labelled tokens of all, or with `average_tokens_across_devices=False` the mean of the ranks'
    losses, as the Trainer makes it.

    Args:
        loss_fn: from the model's output to the loss, as the Trainer computes it.
        weight: what a batch counts, from the arguments that the model was called with; `labelled_tokens` by default
            where the model's own loss is a mean over tokens. 1 for all: `lambda arguments: 1`.
        options: those of `GradientMonitor`, but for `accumulate`, `clip_norm` and `group`, which the Trainer knows.
            With `log=lambda values, step: trainer.log(values)` figures go where those of the Trainer do.

    Attributes:
        monitor: the monitor of the last `train`, None before the first.

    Raises:
        InvalidRequestError: when the training begins, under DeepSpeed.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any], Any] = loss_of,
        *,
        weight: Callable[[Mapping[str, Any]], float] | None = None,
        **options: Any,
    ) -> None:
        self.monitor: GradientMonitor | None = None
        self._loss_fn, self._weight, self._options = loss_fn, weight, options
        self._ranks = 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts a monitor."""
        if getattr(args, "deepspeed_plugin", None) is not None:
            raise InvalidRequestError(
                "the callback cannot follow DeepSpeed, which keeps gradients elsewhere than in .grad: take it out."
            )
        model: nn.Module = kwargs["model"]
        self._ranks = args.world_size
        group = dist.group.WORLD if self._ranks > 1 else None
        clip = args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else None
        self.monitor = GradientMonitor(model, self._loss_fn, clip_norm=clip, group=group, **self._options)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks, on scheduled steps."""
        assert self.monitor is not None
        batches = [dict(call.kwargs) for call in self.monitor.seen]
        items = {str(batch.get(ITEMS)) for batch in batches}
        shares = len(items) == 1 and any(ITEMS in batch for batch in batches)
        if not shares:  # a number of items for each batch divides none of the losses by that of the window
            batches = [{name: value for name, value in batch.items() if name != ITEMS} for batch in batches]
        self.monitor.step_over(
            lambda: batches,
            divisor=1 / loss_scale(args, kwargs["model"]) if shares else None,
            weights=lambda: [] if shares else self._weights(kwargs["model"], batches),
        )

    def _weights(self, model: nn.Module, batches: Sequence[Mapping[str, Any]]) -> list[float]:
        """What each batch counts; nothing where all count the same.

        Ranks average their gradients, whatever the numbers of their tokens: the weights of each rank add up to 1.
        """
        if self._weight is not None:
            return [positive_number("weight", self._weight(batch)) for batch in batches]
        if self._loss_fn is not loss_of or not all(_is_mean_over_tokens(model, batch) for batch in batches):
            return []
        counts = [labelled_tokens(model, batch) for batch in batches]
        if self._ranks > 1:
            return [count / sum(counts) for count in counts] if all(counts) else [1 / len(counts)] * len(counts)
        return [float(count) for count in counts] if all(counts) and len(set(counts)) > 1 else []

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the monitor."""
        if self.monitor is not None:
            self.monitor.close()
