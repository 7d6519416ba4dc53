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

from transformers import TrainerControl, TrainerState  # noqa: E402

from torch_gradcheck import InvalidRequestError, Report  # noqa: E402
from torch_gradcheck.integrations.transformers import (  # noqa: E402
    GradientMonitorCallback,
    labelled_tokens,
    loss_of,
    loss_scale,
)

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
        pytest.param({"gradient_accumulation_steps": 4}, id="accumulating, the last window of an epoch"),
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


def test_a_wrong_gradient_is_found_and_figures_are_logged(tmp_path: Path) -> None:
    seen: dict[str, float] = {}
    callback = GradientMonitorCallback(
        on_mismatch="record", include=["*ln_f*"], log=lambda values, _: seen.update(values)
    )
    train(tmp_path, [Spoiler(), callback], max_grad_norm=0.0)
    assert callback.monitor is not None
    assert [row.name for row in callback.monitor.reports[0].mismatches] == ["transformer.ln_f.bias"]
    assert seen["gradcheck/mismatches"] == 1
    assert seen["gradcheck/update_ratio/transformer.ln_f.weight"] > 0


def accumulated(folder: Path, prepare: Any = None, windows: tuple[int, ...] = (0, 2), **options: Any) -> list[Report]:
    """The reports on the first window, of 3 batches, and on the last one of an epoch of 7, which is 1 batch."""
    callback = GradientMonitorCallback(at=list(windows), on_mismatch="record", include=["*norm*"], **options)
    torch.manual_seed(0)
    trained = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=12, hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=4, num_train_epochs=1, gradient_accumulation_steps=3,
        report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True, disable_tqdm=True, max_grad_norm=0.0,
    )  # fmt: skip
    data = torch.utils.data.Subset(Tokens(), [*range(24), 3, 7, 11, 15])
    trainer = transformers.Trainer(trained, arguments, train_dataset=data, callbacks=[callback])
    if prepare is not None:
        prepare(trainer)
    trainer.train()
    assert callback.monitor is not None
    return list(callback.monitor.reports.values())


def statuses(report: Report) -> set[str]:
    return {str(row.status) for row in report.in_grad or ()}


def averages_means(trainer: Any) -> None:
    """As before the Trainer knew `num_items_in_batch`: each mean over its own tokens, divided by their number."""
    trainer.model_accepts_loss_kwargs = False


def divides_by_its_own(trainer: Any) -> None:
    """Each batch's loss is divided by the number of its own tokens, and the means are summed."""
    compute_loss = trainer.compute_loss

    def own(model: Any, inputs: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        return compute_loss(model, inputs, num_items_in_batch=inputs["labels"][:, 1:].ne(-100).sum(), **kwargs)

    trainer.compute_loss = own


def test_the_trainers_own_normalisation_is_right_in_the_last_window_too(tmp_path: Path) -> None:
    assert [statuses(report) for report in accumulated(tmp_path)] == [{"match"}, {"match"}]


@pytest.mark.parametrize(
    ("prepare", "times"),
    [pytest.param(averages_means, "", id="their mean"), pytest.param(divides_by_its_own, "3 × ", id="their sum")],
)
def test_a_mean_of_means_is_found(tmp_path: Path, prepare: Any, times: str) -> None:
    first, last = accumulated(tmp_path, prepare)
    assert {str(row.diagnosis.kind) for row in first.mismatches if row.diagnosis} == {"weighted"}
    message = first.mismatches[0].diagnosis.message  # type: ignore[union-attr]
    assert "the micro-batches were averaged with equal weights" in message
    assert f"dθ is {times}the mean of the 3 batches" in message
    assert statuses(last) == {"match"}, "one batch is its own mean"


def test_weights_of_the_users_own(tmp_path: Path) -> None:
    [first] = accumulated(tmp_path, averages_means, windows=(0,), weight=lambda arguments: 1)
    assert statuses(first) == {"match"}


def test_labelled_tokens_are_counted_as_the_loss_counts_them() -> None:
    labels = torch.tensor([[5, 6, -100], [-100, 7, 8]])
    causal, plain = model(), nn.Linear(1, 1)
    assert labelled_tokens(causal, {"labels": labels}) == 3
    assert labelled_tokens(plain, {"labels": labels}) == 4
    assert labelled_tokens(causal, {"labels": labels, "shift_labels": labels[:, :2]}) == 3


@pytest.mark.parametrize("output", [{"loss": None}, (None,)], ids=["mapping", "tuple"])
def test_a_model_that_returns_no_loss(output: Any) -> None:
    with pytest.raises(InvalidRequestError, match="the model returned no loss: give the callback loss_fn="):
        loss_of(output)


def test_the_loss_of_an_output() -> None:
    assert loss_of({"loss": 1.0}) == 1.0
    assert loss_of((2.0, SimpleNamespace())) == 2.0


def test_deepspeed_is_refused() -> None:
    arguments: Any = SimpleNamespace(deepspeed_plugin=object())
    with pytest.raises(InvalidRequestError, match="cannot follow DeepSpeed"):
        GradientMonitorCallback().on_train_begin(arguments, TrainerState(), TrainerControl(), model=model())


@pytest.mark.parametrize(
    ("across", "tensor_parallel", "factor"), [(True, None, 4), (True, 2, 2), (False, None, 1)], ids=str
)
def test_shares_of_the_tokens_of_all_ranks_are_multiplied_by_their_number(
    across: bool, tensor_parallel: int | None, factor: float
) -> None:
    arguments: Any = SimpleNamespace(average_tokens_across_devices=across, world_size=4)
    module: Any = SimpleNamespace(tp_size=tensor_parallel)
    assert loss_scale(arguments, module) == factor
