"""Trainers that two ranks of tests run, as if torchrun had started them: what each leaves, what its callback found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from torch_gradcheck import GradientMismatchError, Report


class Trained(NamedTuple):
    """What a training leaves on a rank.

    Attributes:
        left: parameters, logged values and the state of the random generator.
        reports: step → what the callback found.
        error: how the training ended early; "" where it did not.
    """

    left: dict[str, Tensor]
    reports: dict[int, Report]
    error: str


def whole(value: Tensor) -> Tensor:
    """A copy of all of a tensor, sharded or not."""
    return value.full_tensor() if isinstance(value, DTensor) else value.detach().clone()


@contextmanager
def launched() -> Iterator[None]:
    """The environment that torchrun makes, of which trainers read that there are two ranks."""
    rank = str(dist.get_rank())
    environment = {
        "TORCHELASTIC_RUN_ID": "none",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    with mock.patch.dict(os.environ, environment):
        yield


def trained_by_lightning(fault: str, at: list[int], *, watched: bool = True, **options: Any) -> Trained:
    """A training by Lightning; `fault` is what its gradients suffer between the backward and the optimizer."""
    import lightning

    from torch_gradcheck.integrations.lightning import GradientMonitorCallback

    class Module(lightning.LightningModule):
        """A classifier whose training step logs and drops out."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))

        def configure_model(self) -> None:
            if options.get("strategy") != "ddp":
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss, sync_dist=True)
            return loss

        def on_after_backward(self) -> None:
            if fault == "summed" or (fault == "on rank 1" and self.global_rank == 1):
                for parameter in self.parameters():
                    parameter.grad.mul_(2)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    callback, error = GradientMonitorCallback(at=at, on_mismatch=options.pop("on_mismatch", "record")), ""
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(26, 4), torch.randint(0, 3, (26,)))
    with launched():
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", devices=2, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[callback] if watched else [], **options,
        )  # fmt: skip
        torch.manual_seed(0)
        module = Module()
        try:
            trainer.fit(module, DataLoader(data, batch_size=4))
        except GradientMismatchError as ended:
            error = str(ended)
    left = {name: whole(value) for name, value in module.state_dict().items()}
    left |= {name: value.clone() for name, value in trainer.callback_metrics.items()}
    reports = {} if callback.monitor is None else callback.monitor.reports
    return Trained({**left, "random": torch.get_rng_state()}, reports, error)


def trained_by_transformers(folder: Path, fault: str, at: list[int], **options: Any) -> dict[int, Report]:
    """What the callback finds in a training by transformers, whose losses are those of all ranks' tokens."""
    import transformers
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from tests.integrations.test_transformers import Tokens, model
    from torch_gradcheck.integrations.transformers import GradientMonitorCallback

    class Spoiler(transformers.TrainerCallback):
        """Comes before the callback."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if fault == "summed":
                kwargs["model"].transformer.ln_f.bias.grad.mul_(2)

    callback = GradientMonitorCallback(at=at, on_mismatch="record", include=["*ln_f*", "*c_proj.bias"])
    with launched():
        try:
            arguments = transformers.TrainingArguments(
                str(folder), per_device_train_batch_size=4, max_steps=max(at) + 1, report_to=[], save_strategy="no",
                logging_strategy="no", use_cpu=True, disable_tqdm=True, ddp_backend="gloo", max_grad_norm=0.0,
                **options,
            )  # fmt: skip
            trained = model()
            transformers.Trainer(trained, arguments, train_dataset=Tokens(), callbacks=[Spoiler(), callback]).train()
        finally:  # accelerate keeps what it was told of the ranks
            for state in (AcceleratorState, PartialState, GradientState):
                state._reset_state()
    assert callback.monitor is not None
    return callback.monitor.reports
