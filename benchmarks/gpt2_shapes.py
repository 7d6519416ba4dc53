"""GPT-2's shapes at random weights, in float32: time and memory of a check, each in a process of its own.

    python benchmarks/large.py --only gpt2-small gpt2-medium      # these alone, into benchmarks/results/large.json
    python benchmarks/gpt2_shapes.py gpt2-small right             # one check, in this process: prints its figures

The model is `transformers.GPT2LMHeadModel` with tied embeddings, as initialised, in float32 and eval mode; the batch is
one text of 32 random tokens. Checked are the gradients of autograd, and the same with one entry of a middle weight set
to 0. The peak of a check is that of the process's resident memory beyond what it holds before: with the model, and
after a check of a small one, whose imports are not the check's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_gradcheck import Report, check_module

TOKENS = 32

ENTRY = (100, 100)
"""Where the wrong entry is, in the weight of an MLP's first layer."""

SECONDS = 7200
"""The longest that one check may take."""


class Shape(NamedTuple):
    """What is not the same in all of GPT-2's sizes; positions, and other numbers, are GPT-2's."""

    embedding: int
    layers: int
    heads: int
    vocabulary: int = 50257


SHAPES = {
    "gpt2-small": Shape(768, 12, 12),
    "gpt2-medium": Shape(1024, 24, 16),
}
"""Radford et al., "Language models are unsupervised multitask learners" (2019), and the configurations of
transformers' `gpt2` and `gpt2-medium`."""

TINY = {"gpt2-tiny": Shape(128, 4, 4, 2048)}
"""Of a run with `--quick`."""

GRADIENTS = ("right", "one entry")


@dataclass(frozen=True)
class Figures:
    """One check.

    Attributes:
        shape: a key of `SHAPES`.
        gradients: "right", or "one entry" for one that is wrong.
        parameters: the size of θ.
        seconds, cpu_seconds: wall time, and the processor's time of all threads.
        peak_bytes: the most memory beside the model, in bytes; NaN where the system does not tell.
        bytes_a_parameter: the same for each parameter.
        evaluations: of J.
        passed: the verdict.
        named: the parameters that are called wrong.
        wrong: how many entries of them.
        culprit: what is named.
        detectable: the relative error of a tensor that the check would have missed with odds of 1e-6, the largest.
        threads: of torch.
    """

    shape: str
    gradients: str
    parameters: int
    seconds: float
    cpu_seconds: float
    peak_bytes: float
    bytes_a_parameter: float
    evaluations: int
    passed: bool
    named: list[str]
    wrong: int
    culprit: str | None
    detectable: float
    threads: int


def measured(shape: str, gradients: str) -> Figures:
    """The figures of one check, made by a process of its own.

    Raises:
        RuntimeError: it did not end well; the message is the end of what it has said.
    """
    command = [sys.executable, __file__, shape, gradients]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{shape}, {gradients}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def of_this_process(shape: str, gradients: str) -> Figures:
    """The figures of one check in this process."""
    check(model_of(TINY["gpt2-tiny"]._replace(layers=1)), tokens_of(TINY["gpt2-tiny"]))
    asked = (SHAPES | TINY)[shape]
    model, tokens = model_of(asked), tokens_of(asked)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if gradients != "right":
        weight = f"transformer.h.{asked.layers // 2}.mlp.c_fc.weight"
        model.get_parameter(weight).register_hook(without_an_entry)
    clear, before = Path("/proc/self/clear_refs"), resident("VmRSS")
    if clear.exists():
        clear.write_text("5")  # Linux forgets the peak there was
    started, on_cpu = perf_counter(), process_time()
    report = check(model, tokens)
    seconds, cpu_seconds = perf_counter() - started, process_time() - on_cpu
    peak = resident("VmHWM") - before if clear.exists() else float("nan")
    return Figures(
        shape=shape,
        gradients=gradients,
        parameters=parameters,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_bytes=peak,
        bytes_a_parameter=peak / parameters,
        evaluations=report.evaluations,
        passed=report.passed,
        named=[row.name for row in report.mismatches],
        wrong=sum(row.mismatched for row in report.mismatches),
        culprit=report.culprit,
        detectable=max(row.detectable for row in report),
        threads=torch.get_num_threads(),
    )


def model_of(shape: Shape) -> nn.Module:
    """The model, the same one every time."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.embedding,
        n_layer=shape.layers,
        n_head=shape.heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    return model.eval()


def tokens_of(shape: Shape) -> Tensor:
    """One text, shape (1, TOKENS)."""
    return torch.randint(0, shape.vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def check(model: nn.Module, tokens: Tensor) -> Report:
    """The check, by the projected method."""
    return check_module(model, next_token, (tokens, tokens), method="projected", progress=False)


def next_token(outputs: Any, tokens: Tensor) -> Tensor:
    """The loss of a language model, as transformers has it, in the precision of the scores."""
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def without_an_entry(gradient: Tensor) -> Tensor:
    """The gradient with one entry set to 0."""
    changed = gradient.clone()
    changed[ENTRY] = 0
    return changed


def resident(field: str) -> int:
    """A field of this process's status, in bytes, 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line, and prints the figures of one check as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES | TINY)
    parser.add_argument("gradients", choices=GRADIENTS)
    given = parser.parse_args(arguments)
    print(json.dumps(asdict(of_this_process(given.shape, given.gradients))))


if __name__ == "__main__":
    main()
