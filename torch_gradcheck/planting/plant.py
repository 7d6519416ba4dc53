"""Plants faults in the backward of every module, one at a time, and says which of them a check would not find."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from torch_gradcheck.borrowing.assembly import assembled
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.methods.agreement import agree
from torch_gradcheck.methods.choice import METHOD_NAMES
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.loss import ModuleLoss
from torch_gradcheck.planting import faults
from torch_gradcheck.planting.left_out import InputGradients
from torch_gradcheck.planting.module_faults import ModuleFaults, OfModule, positions_of
from torch_gradcheck.planting.reasons import observed
from torch_gradcheck.planting.spots import BlindSpots
from torch_gradcheck.processes.groups import team_of
from torch_gradcheck.reporting.progress import ProgressBar, progress_bar
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.request import Mode, callable_argument, validated_request
from torch_gradcheck.tracebacks import UsersFrames

if TYPE_CHECKING:  # a build of torch may come without it
    from torch.distributed import ProcessGroup


def blind_spots(
    model: nn.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    *,
    mode: Mode = "eval",
    seed: int = 0,
    perturb: float = 0.0,
    progress: bool | None = None,
    group: ProcessGroup | None = None,
) -> BlindSpots:
    """Plants faults in the backward of every module of `model`, and says which `check_module` would not find, and why.

    The faults, planted one at a time:

    - The gradient that arrives for a module's output is scaled by 1.01, flipped, zeroed, or loses one entry. That entry
      belongs to a unit that never fires, or that gets no gradient on the whole batch; where there is none, it is the
      largest.
    - The gradient of each parameter likewise. The entry is one that is exactly 0, where there is one.
    - Each of a module's own parameters is left out of the gradient of its input, which is computed as if the parameter
      were 1 everywhere, or 0 where its name says that it is a bias.

    A fault is found if it changes some entry of the gradient of J by more than a check passes. To know that takes one
    backward for each fault, and no differences. At a kink of J a check may pass more.

    Autograd's own gradient is taken for right: check it first. A parameter of several modules is listed once. A module
    that is not called, but whose parameters or inner modules are used all the same, has no backward of its own.

    Args:
        model: the user's model; nothing of it changes.
        loss_fn: gives the scalar loss, as in `check_module`.
        batch: how the model is called, as in `check_module`.
        mode: `"eval"`, `"train"` or `"keep"`.
        seed: of the random state, and of `perturb`.
        perturb: how far from the model's own θ, as in `check_module`.
        progress: True or False; None shows a bar only for long work, on a terminal or in a notebook.
        group: None, or a `torch.distributed` process group whose ranks share the faults. Every rank calls this with the
            same arguments, and gets the same result; an exception on one ends it on all.

    Raises:
        InvalidRequestError: an argument that cannot be used.
        NonScalarLossError, NonFiniteLossError, NonDeterministicLossError: a loss that cannot be checked.
    """
    with UsersFrames(), team_of(group).together() as team:
        request = validated_request(
            model, METHOD_NAMES, mode=mode, seed=seed, progress=progress, perturb=perturb, team=team
        )
        callable_argument("loss_fn", loss_fn)
        with (
            assembled(model, loss_fn, batch),
            progress_bar(request.progress) as bar,
            posed(model, ModuleLoss(model, loss_fn, batch), request, progress=bar) as problem,
        ):
            agree(problem, entry="blind_spots")
            planting = Planting(problem, bar)
            return team.lead(planting, planting.everywhere, prepare=planting.get_ready)


class Planting:
    """All faults of a model, planted one after the other while it is lent; by several ranks, some modules each.

    Args:
        problem: J and θ.
        progress: advanced at every module.
    """

    def __init__(self, problem: Problem, progress: ProgressBar) -> None:
        self._problem, self._progress = problem, progress

    def get_ready(self) -> None:
        """Runs J and its backward at θ, and looks for what there is to plant."""
        problem = self._problem
        seen = observed(problem)
        self._flows = seen.flows
        self._inputs = InputGradients(problem.model, problem.objective, problem.theta)
        self._faults = ModuleFaults(problem, seen, self._inputs)

    def everywhere(self) -> BlindSpots:
        """What became of the faults of all modules, in the order of `named_modules()`."""
        self.get_ready()
        problem, request, modules = self._problem, self._problem.request, list(self._flows.modules)
        self._progress.start(len(modules), "planting faults")
        noise, team = problem.noise, request.team.working_on(self)
        if team.can_share:
            shares = [(noise, self._told_of(names)) for names in self._dealt(modules, team.size)]
            found = {name: each for answer in team.shared(of_modules, shares) for name, each in answer.items()}
        else:
            found = self.of_modules(self._told_of(modules))
        rows = [row for name in modules for row in found[name].rows]
        not_planted = [each for name in modules for each in found[name].not_planted]
        return BlindSpots(tuple(rows), request.mode, request.seed, request.perturb, self._notes(not_planted))

    def take_noise(self, noise: Noise) -> None:
        """Takes the noise of J as another rank has measured it."""
        self._problem.take_over(noise, {})

    def of_modules(self, positions: Mapping[str, Collection[int]]) -> dict[str, OfModule]:
        """What became of the faults of some modules, by name; `positions` says whose parameters are told of there."""
        found: dict[str, OfModule] = {}
        for name, told in positions.items():
            self._progress.at(name)
            found[name] = self._faults.of_module(name, told)
            self._progress.advance()
        return found

    def _told_of(self, names: Sequence[str]) -> dict[str, list[int]]:
        """The parameters that are told of with each of these modules: its own that no module before it has."""
        positions = positions_of(self._problem)
        told: set[int] = set()
        every: dict[str, list[int]] = {}
        for name, module in self._flows.modules.items():
            held = [positions.get(id(each)) for _, each in module.named_parameters(recurse=False)]
            every[name] = [at for at in dict.fromkeys(held) if at is not None and at not in told]
            told.update(every[name])
        return {name: every[name] for name in names}

    def _dealt(self, names: Sequence[str], size: int) -> list[list[str]]:
        """The modules of each rank, so that all plant about as many faults."""
        hands, planted = [list[str]() for _ in range(size)], [0] * size
        for name in names:
            rank = planted.index(min(planted))
            hands[rank].append(name)
            of_output = len(faults.WHOLE) + 1 if self._flows.of[name].calls else 0
            planted[rank] += of_output + len(self._inputs.entering.get(name, ()))
        return hands

    def _notes(self, not_planted: Sequence[str]) -> tuple[str, ...]:
        """What the rows do not say."""
        modules = [name or "the model" for name in self._inputs.failed]
        alone = f"no parameter was left out in {listed(modules)}, which cannot be run a second time beside itself"
        planted = f"could not be planted, as J becomes another number or cannot be computed: {listed(not_planted)}"
        return (*[alone] * bool(modules), *[planted] * bool(not_planted))


def of_modules(planting: Planting, share: tuple[Noise, Mapping[str, Collection[int]]]) -> dict[str, OfModule]:
    """What became of the faults of one rank's share of the modules, against the noise of J that the leader measured."""
    noise, positions = share
    planting.take_noise(noise)
    return planting.of_modules(positions)
