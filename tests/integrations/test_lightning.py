from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning")

from lightning.pytorch.loggers import Logger  # noqa: E402
from lightning.pytorch.strategies import DeepSpeedStrategy  # noqa: E402

from torch_gradcheck import GradientMismatchError, InvalidRequestError  # noqa: E402
from torch_gradcheck.integrations.lightning import GradientMonitorCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, devices and loggers


class Module(lightning.LightningModule):
    """A classifier whose training step logs, drops out, and calls no module as a whole."""

    def __init__(self, spoiled: bool = False, automatic: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))
        self.spoiled = spoiled
        self.automatic_optimization = automatic

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        self.log_dict({"twice": 2 * loss})
        return {"loss": loss} if batch_idx % 2 else loss

    def on_after_backward(self) -> None:
        if self.spoiled:
            self.net[4].weight.grad.mul_(2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(module: Module, callbacks: list[Any], **options: Any) -> dict[str, Any]:
    """All that the training leaves."""
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(28, 4), torch.randint(0, 3, (28,)))
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **({"gradient_clip_val": 0.5, "logger": False} | options),
    )
    trainer.fit(module, DataLoader(data, batch_size=4, shuffle=True))
    logged = {name: value.clone() for name, value in trainer.callback_metrics.items()}
    return {**module.state_dict(), **logged, "random": torch.get_rng_state()}


def seeded(**options: bool) -> Module:
    torch.manual_seed(0)
    return Module(**options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"precision": "bf16-mixed"}, id="bfloat16"),
        pytest.param({"accumulate_grad_batches": 3}, id="accumulating, one batch left over"),
    ],
)
def test_steps_are_judged_and_the_run_is_the_same(options: dict[str, Any]) -> None:
    callback = GradientMonitorCallback(at=[0, 2], on_mismatch="record")
    watched = fit(seeded(), [callback], **options)
    alone = fit(seeded(), [], **options)
    assert alone.keys() == watched.keys()
    assert [name for name in alone if not torch.equal(alone[name], watched[name])] == []
    assert callback.monitor is not None
    assert list(callback.monitor.reports) == [0, 2]
    for report in callback.monitor.reports.values():
        assert report.passed, str(report.in_grad)
        assert report.in_grad is not None
        assert {str(row.status) for row in report.in_grad} <= {"match", "flat"}


class Kept(Logger):
    """Keeps what is logged."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[int]] = {}

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Keeps nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name in metrics:
            self.seen.setdefault(name, []).append(-1 if step is None else step)


def test_a_last_window_that_the_trainer_divides_by_a_whole_one_is_noted_and_loggers_are_written_to() -> None:
    callback, logger = GradientMonitorCallback(at=[0, 2], log=True), Kept()
    fit(seeded(), [callback], accumulate_grad_batches=3, logger=logger)
    for name in ("total_grad_norm", "grad_norm/net.4.weight", "update_ratio/net.4.weight"):
        assert logger.seen[f"gradcheck/{name}"] == [0, 2]
    assert callback.monitor is not None
    whole, last = callback.monitor.reports.values()
    note = "this step has 1 batch, and the trainer divides the sum of their losses by 3: .grad is judged as 0.333 of"
    assert any(each.startswith(note) for each in last.notes)
    assert not any(each.startswith("this step has") for each in whole.notes)


def test_a_wrong_gradient_ends_the_training() -> None:
    module = seeded(spoiled=True)
    callback = GradientMonitorCallback()
    with pytest.raises(GradientMismatchError, match=r"net\.4\.weight"):
        fit(module, [callback])
    assert callback.monitor is not None
    assert [row.name for row in callback.monitor.reports[0].mismatches] == ["net.4.weight"]
    assert "log" not in vars(module)
    assert not module._forward_pre_hooks, "the monitor is closed"


def test_manual_optimization_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"manual optimization: use GradientMonitor\.of_closure"):
        fit(seeded(automatic=False), [GradientMonitorCallback()], gradient_clip_val=None)


def test_deepspeed_is_refused() -> None:
    strategy = object.__new__(DeepSpeedStrategy)
    with pytest.raises(InvalidRequestError, match="cannot follow DeepSpeed"):
        GradientMonitorCallback().on_train_start(SimpleNamespace(strategy=strategy), seeded())
