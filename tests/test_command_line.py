"""What the command says and exits with; what it prints of a report is the renderings' own matter."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from torch_gradcheck.command_line import command, main
from torch_gradcheck.command_line.launch import RENDEZVOUS, Ranks
from torch_gradcheck.command_line.printing import print_to
from torch_gradcheck.reporting.report import Report

PROBLEMS = """
import sys
from copy import deepcopy
import torch
from torch import nn

def right():
    return nn.Linear(3, 2), nn.MSELoss(), (torch.ones(4, 3), torch.zeros(4, 2))

def wrong():
    model, loss_fn, batch = right()
    model.weight.register_hook(lambda g: 2 * g)
    return model, loss_fn, batch

def proves_nothing():
    model, _, batch = right()
    return model, lambda y, _: 0 * y.sum(), batch

def partly_flat():
    model, _, batch = right()
    return nn.Sequential(model, nn.BatchNorm1d(2)).train(), lambda y, _: y[0].sin().sum(), batch

def raises():
    raise ZeroDivisionError("of mine")

def raises_in_the_loss():
    model, _, batch = right()
    return model, lambda *_: raises(), batch

class Misfit(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(x)

def misfits():
    return Misfit(), nn.MSELoss(), (torch.ones(4, 3), torch.zeros(4, 2))

def leaves():
    sys.exit(0)

async def waits():
    return right()

def yields():
    yield right()

def is_interrupted():
    raise KeyboardInterrupt

def asks(argument):
    return right()

def returns_nothing():
    right()

def gives_one():
    return right()[:1]

def function():
    return torch.mul, (torch.ones(2), torch.full((2,), 3.0))

def wrong_function():
    return (lambda x: x * x.detach()), (torch.ones(2),)

def forgets_the_batch():
    return right()[:2]

class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, grad):
        return grad.div_(2)

def writes_to_its_gradient():
    return Half.apply, (torch.ones(3),)

def sine_and_cosine(factor):
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, grad):
            return factor * grad * ctx.saved_tensors[0].cos()

    return Sine.apply, (torch.linspace(-2, 2, 33).to(torch.bfloat16),)

def kernel():
    return *sine_and_cosine(1), torch.sin

def wrong_kernel():
    function, inputs = sine_and_cosine(1.5)
    return {"function": function, "inputs": inputs, "reference": torch.sin}

def wrong_reference():
    reference, inputs = sine_and_cosine(1.5)
    return torch.sin, inputs, reference

def module_and_reference():
    model, loss_fn, batch = right()
    return model, loss_fn, batch, model

def named():
    return dict(zip(("model", "loss_fn", "batch", "reference"), module_and_reference()))

def misnamed():
    return {"kernel": torch.sin, "inputs": ()}

def many_targets():
    model, loss_fn, batch = right()
    return model, loss_fn, (*batch, 1, 2)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.py"
    path.write_text(PROBLEMS)
    return path


@pytest.mark.parametrize(
    ("function", "flags", "status"),
    [
        ("right", [], 0),
        ("right", ["--strict"], 0),
        ("wrong", [], 1),
        ("wrong", ["--strict"], 1),
        ("proves_nothing", [], 3),
        ("proves_nothing", ["--strict"], 3),
        ("partly_flat", ["--mode", "train"], 0),
        ("partly_flat", ["--mode", "train", "--strict"], 3),
    ],
)
def test_the_verdict(
    file: Path, capsys: pytest.CaptureFixture[str], function: str, flags: list[str], status: int
) -> None:
    assert main([f"{file}:{function}", *flags]) == status
    assert ("✗ mismatch weight" in capsys.readouterr().out) == (status == 1)


@pytest.mark.parametrize(
    ("function", "status"),
    [("kernel", 0), ("wrong_kernel", 1), ("wrong_reference", 1), ("module_and_reference", 0), ("named", 0)],
)
def test_a_candidate_beside_its_reference(file: Path, function: str, status: int) -> None:
    assert main([f"{file}:{function}"]) == status


def test_a_second_order_is_not_compared(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:kernel", "--order", "2"]) == 2
    assert "reference= compares gradients of first order" in capsys.readouterr().err


def test_a_check_of_second_order(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:right", "--order", "2"]) == 0
    assert "second-order gradients right" in capsys.readouterr().out


def test_a_perturbed_check(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:right", "--perturb", "0.1"]) == 0
    assert "checked at θ + 0.1 · s" in capsys.readouterr().out
    assert main([f"{file}:right", "--perturb", "-1"]) == 2
    assert "perturb must be 0 or a positive finite number" in capsys.readouterr().err


NOT_CHECKED = {
    "raises": "ZeroDivisionError: of mine",
    "raises_in_the_loss": "ZeroDivisionError: of mine",
    "leaves": "ended in SystemExit",
    "asks": "can be called without arguments: missing a required argument: 'argument'",
    "returns_nothing": "got None (is its `return` missing?)",
    "gives_one": "must return (model, loss_fn, batch) or (function, inputs), got tuple of 1",
    "forgets_the_batch": "must return (model, loss_fn, batch) or (function, inputs), got tuple of 2",
    "misnamed": "returned a mapping of ['kernel', 'inputs']: its keys must be",
    "many_targets": "batch does not fit loss_fn",
    "rigth": "no function 'rigth'; close names: right",
    "waits": "waits is a function with `async`: name one that returns what is to be checked.",
    "yields": "yields is a function with `yield`: name one",
    "__name__": "no function '__name__': that is of type str; ",
}


def test_a_written_report_says_by_which_command_it_was_made(file: Path) -> None:
    words = [f"{file}:right", "--seed", "3", "--json", str(file.parent / "report.json")]
    assert main(words) == 0
    made = Report.load(file.parent / "report.json").provenance
    assert made is not None
    assert shlex.split(made.again) == ["torch-gradcheck", *words]


def test_the_command_of_launched_processes_has_the_launcher_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RENDEZVOUS:
        monkeypatch.setenv(name, "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert Ranks().command(["a.py:f"]) == ["torchrun", "--nproc-per-node", "2", "-m", "torch_gradcheck", "a.py:f"]


@pytest.mark.parametrize("where", ["missing/report", ""], ids=["no directory", "a directory"])
@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_that_cannot_be_written_is_refused_before_the_check(
    file: Path, capsys: pytest.CaptureFixture[str], option: str, where: str
) -> None:
    assert main([f"{file}:raises", option, str(file.parent / where)]) == 2
    printed = capsys.readouterr()
    assert "the report cannot be written to" in printed.err
    assert "ZeroDivisionError" not in printed.err


def test_functions_that_could_be_meant_are_listed_without_what_the_file_imports(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"{file}:zzz"]) == 2
    assert "known names: right" in capsys.readouterr().err


@pytest.mark.parametrize("function", NOT_CHECKED)
def test_what_could_not_be_checked_is_no_verdict(file: Path, capsys: pytest.CaptureFixture[str], function: str) -> None:
    assert main([f"{file}:{function}"]) == 2
    printed = capsys.readouterr()
    assert NOT_CHECKED[function] in printed.err
    assert printed.out == ""
    assert f"{Path('torch_gradcheck', 'command_line')}" not in printed.err, "a frame of the command itself"


def test_an_error_of_the_users_is_shown_with_the_users_frames(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:raises_in_the_loss"]) == 2
    shown = capsys.readouterr().err
    frames = [line for line in shown.splitlines() if line.startswith("  File")]
    assert [name for name in frames if "problems.py" not in name] == []
    assert 'raise ZeroDivisionError("of mine")' in shown


def test_a_mistake_of_the_commands_own_is_kept_in_a_file(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def mistaken(*_: object) -> None:
        raise KeyError("ours")

    mistaken.__code__ = mistaken.__code__.replace(co_filename=command.__file__)
    monkeypatch.setattr(command, "_checked", mistaken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main([f"{file}:right"]) == 2
    said = capsys.readouterr().err
    (kept,) = tmp_path.glob("torch-gradcheck-*.txt")
    assert said.count("\n") == 1
    assert "looks like a mistake in torch-gradcheck" in said
    assert "KeyError: 'ours'" in said
    assert str(kept) in said
    assert kept.read_text().count("command.py") >= 3


def test_an_interrupt_is_told_in_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:is_interrupted"]) == 130
    assert capsys.readouterr().err == "torch-gradcheck: interrupted\n"


def test_shapes_that_do_not_fit_are_told_with_the_users_frames(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:misfits"]) == 2
    said = capsys.readouterr().err
    frames = [line for line in said.splitlines() if line.startswith("  File")]
    assert len(frames) == 1
    assert "problems.py" in frames[0]
    assert "'last' (Linear(in_features=5, out_features=2, bias=True)) was given an input of shape (4, 3)" in said
    assert "Traceback" not in said


def test_a_file_without_a_function_names_its_functions_and_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "named.py").write_text("1 / 0\ndef a(): ...\ndef b(x): ...\ndef c(x=1, *, y=2): ...\ndef _d(): ...\n")
    assert main([str(tmp_path / "named.py")]) == 2
    said = capsys.readouterr().err
    assert "named.py:a, " in said
    assert "named.py:c." in said
    assert "named.py:b" not in said
    assert "_d" not in said


def test_an_unknown_option_names_close_ones(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"{file}:raises", "--tolerence=1"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --tolerence=1; close names: --tolerance" in capsys.readouterr().err


def test_a_stream_that_is_closed_early_and_has_no_file_is_no_error() -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    print_to(Closed(), "the report")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_disk_that_is_full(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:right", "--json", "/dev/full"]) == 2
    assert "the report cannot be written to /dev/full: No space left" in capsys.readouterr().err


TARGETS = {
    "notes.ipynb:f": "notes.ipynb is a notebook: move the function to a file that ends in .py",
    "/:f": "'/' is neither a file that ends in .py nor the name of a module: it is a directory, name a file in it",
    "nothing": "is not of the form",
    "missing.py:f": "there is no file missing.py",
    ".py:f": "there is no file .py",
    "no.such.module:f": "there is no module 'no.such.module'",
    "..:f": "'..' is neither a file",
    ".x:f": "'.x' is neither a file",
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_is_none(capsys: pytest.CaptureFixture[str], target: str) -> None:
    assert main([target]) == 2
    assert TARGETS[target] in capsys.readouterr().err


@pytest.mark.parametrize("content", ["1 / 0", "def f(:", "import no_such_package"], ids=["raises", "syntax", "import"])
def test_a_file_that_cannot_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "broken.py").write_text(content)
    assert main([f"{tmp_path / 'broken.py'}:f"]) == 2
    assert "Error" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--seed", "-1"], ["--seed", str(2**70)], ["--eps", "x"], ["--mode", "no"]], ids=str)
def test_flags_that_are_none(file: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"{file}:right", *flags])
    assert caught.value.code == 2


@pytest.mark.parametrize("flags", [["--eps", "nan"], ["--tolerance", "0"], ["--include", "x*"]], ids=str)
def test_values_that_do_not_fit(file: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert main([f"{file}:right", *flags]) == 2
    assert flags[0].removeprefix("--") in capsys.readouterr().err


def test_a_file_that_cannot_be_written(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:right", "--json", str(file.parent / "nowhere" / "report.json")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_report_goes_to_standard_output_and_its_text_gives_way(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert main([f"{file}:wrong", "--json", "-"]) == 1
    printed = capsys.readouterr()
    assert not json.loads(printed.out)["passed"]
    assert printed.err.startswith("gradients WRONG")
    assert not Path("-").exists()


def test_two_reports_on_standard_output_are_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:raises", "--json", "-", "--html", "-"]) == 2
    assert "give the other one a file" in capsys.readouterr().err


def test_a_broken_contract_is_a_failure(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:writes_to_its_gradient"]) == 1
    assert "contract BROKEN in 2 of 11 entries:\ngrad_output_kept, layouts" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("function", "status"), [("right", 0), ("wrong", 1)])
def test_a_pipe_that_is_closed_early(file: Path, function: str, status: int) -> None:
    command = [sys.executable, "-m", "torch_gradcheck", f"{file}:{function}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.wait(), process.stderr and process.stderr.read()) == (status, "")
    process.stderr and process.stderr.close()


@pytest.mark.parametrize(
    ("function", "flags", "status"),
    [
        ("function", [], 0),
        ("function", ["--strict", "--seed", "1"], 0),
        ("wrong_function", [], 1),
        ("wrong_function", ["--hold-detached"], 0),
    ],
)
def test_the_verdict_on_a_function(
    file: Path, capsys: pytest.CaptureFixture[str], function: str, flags: list[str], status: int
) -> None:
    assert main([f"{file}:{function}", *flags]) == status
    assert ("✗ mismatch x" in capsys.readouterr().out) == (status == 1)


def test_options_of_a_model_are_refused_for_a_function(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:function", "--mode", "train", "--perturb", "0.1"]) == 2
    assert "--mode, --perturb are for models" in capsys.readouterr().err


@pytest.mark.parametrize("problem", ["right", "function"])
def test_the_second_order_is_checked_of_a_model_and_of_a_function(
    file: Path, capsys: pytest.CaptureFixture[str], problem: str
) -> None:
    main([f"{file}:{problem}", "--order", "2"])
    assert capsys.readouterr().out.startswith("second-order gradients ")


WRITTEN_BEFORE = Path(__file__).parent / "reporting" / "written_before"
WRONG, OTHER = (str(WRITTEN_BEFORE / f"{name}.json") for name in ("wrong_model", "monitored_step"))


@pytest.mark.parametrize(
    ("old", "new", "status", "said"),
    [
        (WRONG, WRONG, 0, "nothing changed: 5 of 5 rows are as before"),
        (WRONG, OTHER, 1, "1 BECAME WRONG, 5 GONE, 1 new"),
    ],
    ids=["as before", "wrong"],
)
def test_two_reports_are_compared(
    capsys: pytest.CaptureFixture[str], old: str, new: str, status: int, said: str
) -> None:
    assert main(["compare", old, new]) == status
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.json", "No such file or directory: 'missing.json'"),
        (__file__, "test_command_line.py: this is no JSON"),
    ],
    ids=["missing", "no JSON"],
)
def test_a_file_that_cannot_be_compared_ends_in_one_message(
    capsys: pytest.CaptureFixture[str], path: str, message: str
) -> None:
    for words in ([path, WRONG], [WRONG, path]):
        assert main(["compare", *words]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("torch-gradcheck: ")
        assert message in printed.err
        assert (printed.err.count("\n"), printed.out) == (1, "")


@pytest.mark.parametrize("words", [[], [WRONG], [WRONG, WRONG, WRONG]], ids=len)
def test_a_comparison_is_of_two_files(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compare", *words])
    assert caught.value.code == 2
    assert "usage: torch-gradcheck compare [-h] [--strict] OLD.json NEW.json" in capsys.readouterr().err


def test_a_comparison_that_is_interrupted_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Report, "load", interrupted)
    assert main(["compare", WRONG, WRONG]) == 130
    assert capsys.readouterr() == ("", "torch-gradcheck: interrupted\n")


@pytest.mark.parametrize(("change", "status"), [("flat", 3), ("kink", 0), ("mismatch", 1)])
def test_what_is_no_longer_proven_is_strictly_worse(tmp_path: Path, change: str, status: int) -> None:
    later = json.loads(Path(WRONG).read_text())
    later["parameters"][0]["status"] = change
    (tmp_path / "later.json").write_text(json.dumps(later))
    words = ["compare", WRONG, str(tmp_path / "later.json")]
    assert main(words) == (status if status != 3 else 0)
    assert main([*words, "--strict"]) == status


def test_a_comparison_needs_no_torch() -> None:
    program = f"import sys; from torch_gradcheck.command_line import main; main(['compare', {WRONG!r}, {OTHER!r}]);"
    program += "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "[]"
