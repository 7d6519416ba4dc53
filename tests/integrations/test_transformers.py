from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from torch_gradcheck import InvalidRequestError  # noqa: E402
from torch_gradcheck.integrations.transformers import GradientMonitorCallback, loss_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer's advice on devices and data loaders


class Tokens(Dataset):
    """Sequences whose labels are ignored here and there, so that batches have different numbers of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(3, 12, (24, 5), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        labels = self.tokens[index].clone()
        labels[: index % 4] = -100
        return {"input_ids": self.tokens[index], "labels": labels}


def model() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=12, n_positions=6, n_embd=4, n_layer=1, n_head=2, n_inner=4, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)  # with dropout


class Spoiler(transformers.TrainerCallback):
    """Doubles one gradient before the monitor sees it."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].transformer.ln_f.bias.grad.mul_(2)


def train(folder: Path, callbacks: list[Any], **options: Any) -> dict[str, Tensor]:
    trained = model()
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=3,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = transformers.Trainer(trained, arguments, train_dataset=Tokens(), callbacks=callbacks)
    trainer.train()
    return {**trained.state_dict(), "random": torch.get_rng_state()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"bf16": True}, id="bfloat16"),
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulating"),
        pytest.param({"max_grad_norm": 0.05}, id="clipping"),
        pytest.param({"max_grad_norm": 0.0}, id="not clipping"),
    ],
)
def test_steps_are_judged_and_the_run_is_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    callback = GradientMonitorCallback(at=1, on_mismatch="record", include=["*ln_f*", "*c_proj.bias"])
    watched, alone = train(tmp_path, [callback], **options), train(tmp_path, [], **options)
    assert [name for name in alone if not torch.equal(alone[name], watched[name])] == []
    assert callback.monitor is not None
    (report,) = callback.monitor.reports.values()
    assert report.in_grad is not None
    assert {str(row.status) for row in report.in_grad} == {"match"}, str(report.in_grad)


def test_a_wrong_gradient_is_found(tmp_path: Path) -> None:
    callback = GradientMonitorCallback(on_mismatch="record", include=["*ln_f*"])
    train(tmp_path, [Spoiler(), callback], max_grad_norm=0.0)
    assert callback.monitor is not None
    assert [row.name for row in callback.monitor.reports[0].mismatches] == ["transformer.ln_f.bias"]


@pytest.mark.parametrize("output", [{"loss": None}, (None,)], ids=["mapping", "tuple"])
def test_a_model_that_returns_no_loss(output: Any) -> None:
    with pytest.raises(InvalidRequestError, match="the model returned no loss: give the callback loss_fn="):
        loss_of(output)


def test_the_loss_of_an_output() -> None:
    assert loss_of({"loss": 1.0}) == 1.0
    assert loss_of((2.0, SimpleNamespace())) == 2.0
