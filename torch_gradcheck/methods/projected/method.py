"""Every checked parameter's gradient tried along directions: verified, or accused by single differences of J."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.problem import Numerical
from torch_gradcheck.methods.projected.bisect import Bisection
from torch_gradcheck.methods.projected.confirm import Confirmer, Suspect
from torch_gradcheck.methods.projected.detection_power import ODDS
from torch_gradcheck.methods.projected.directions import Directions
from torch_gradcheck.methods.projected.verify import Certificate, Verifier
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import real_view
from torch_gradcheck.objective.theta import Theta, ThetaEntry
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.request import Request
from torch_gradcheck.verdicts.entry_check import ACCUSATION, EntryResults, Outcome, rounding_of
from torch_gradcheck.verdicts.judge import judge_gradient
from torch_gradcheck.verdicts.trial import ParameterTrial, Proof


def on_directions(rows: Sequence[ParameterReport]) -> str:
    """The note on what the random directions have proven; "" where they proved nothing."""
    verified = [row for row in rows if row.status is Status.MATCH and row.directions]
    if not verified:
        return ""
    least = max(verified, key=lambda row: row.detectable)
    entries = sum(row.checked for row in verified)
    return (
        f"{entries:,} entries were compared with a gradient that J's slopes along {least.directions} random directions "
        f"bear out: an error of {least.detectable:.0e} of the gradient of any tensor would have been missed with odds "
        f"of {ODDS:.0e}"
    )


EVALUATIONS = 60
"""How many evaluations of J a correct model takes, about, for the progress bar."""

REDERIVED_ROUNDING = 1024.0
"""How many machine epsilons of the largest entry two right ways to a gradient may differ by."""

FEW = 64
"""A tensor of so many coordinates is tried at every one of them where directions say nothing."""

SAMPLED = 16
"""How many coordinates of a larger one are."""


@dataclass(frozen=True)
class Verified:
    """A tensor's gradient that J bears out along random directions.

    Attributes:
        gradient: shape (coordinates,), zero where left out; the one on trial, or the one that J's record gives.
        certificate: what was proven of it.
    """

    gradient: Floats
    certificate: Certificate


class Projected:
    """The gradients of a large θ, against J along directions.

    Args:
        objective: J.
        theta: its parameters, lent in the precision of the check.
        request: tolerance, step and seed.
        numerical: the noise of J, the engines, and the trial of single coordinates.
        gradients: those on trial, by position in θ.
        progress: told of every evaluation.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Theta,
        request: Request,
        numerical: Numerical,
        gradients: dict[int, AnalyticGradient],
        progress: ProgressBar,
    ) -> None:
        self._objective, self._theta, self._request, self._numerical = objective, theta, request, numerical
        self._gradients, self._progress = gradients, progress
        self._directions = Directions(objective, theta, request.seed, progress)
        self._certifier = Verifier(self._directions, numerical.noise, request.tolerance, request.eps)
        self._trial = {position: _cleaned(theta[position], g.values) for position, g in gradients.items()}

    def trials(self) -> dict[int, ParameterTrial]:
        """Every checked parameter tried, in the order of θ, by position."""
        self._progress.start(EVALUATIONS, "directions")
        verified = self._verified()
        trial = {position: self._compared(position, found) for position, found in verified.items()}
        unconfirmed = self._accuse(verified, trial)
        for position in self._theta.checked:
            if position not in trial or position in unconfirmed:
                trial[position] = self._tried_directly(position, unconfirmed.get(position))
        return {position: trial[position] for position in self._theta.checked}

    # The gradient that is verified --------------------------------------------------------------------------------

    def _verified(self) -> dict[int, Verified]:
        """The tensors of which J bears out the rederived gradient or, failing that, the one on trial."""
        rederived = self._rederived()
        certificates, refused = self._certifier.certify(rederived, self._theta.checked)
        verified = {p: Verified(rederived[p], certificate) for p, certificate in certificates.items()}
        others = [p for p in refused if self._disagreeing(p, rederived[p]).any()]
        if others:
            certificates, _ = self._certifier.certify(self._trial, others)
            verified |= {p: Verified(self._trial[p], certificate) for p, certificate in certificates.items()}
        return {p: found for p, found in verified.items() if not self._proves_too_little(p, found)}

    def _proves_too_little(self, position: int, found: Verified) -> bool:
        """Whether a gradient on trial that is its own reference is one of a few entries, and coarsely verified.

        Nothing else would be compared with it; to difference each entry takes little.
        """
        length = float(np.linalg.norm(found.gradient))
        coarse = found.certificate.proof.resolution > self._request.tolerance * length > 0
        return found.gradient is self._trial[position] and coarse and len(found.gradient) <= FEW

    def _rederived(self) -> dict[int, Floats]:
        """The gradient by the record of J; of a parameter that it gives none for, the one on trial."""
        found = self._numerical.engine.gradients()
        if found is None:
            return self._trial
        return {position: self._usable(position, found[position]) for position in self._theta.checked}

    def _usable(self, position: int, gradient: torch.Tensor | None) -> Floats:
        entry = self._theta[position]
        if gradient is None:
            return np.zeros(entry.coordinates)
        dense = gradient.detach().to_dense() if gradient.layout is not torch.strided else gradient.detach()
        flat = real_view(dense.resolve_conj()).reshape(-1).double().numpy()
        return _cleaned(entry, flat) if np.isfinite(flat).all() else self._trial[position]

    def _disagreeing(self, position: int, reference: Floats) -> Flags:
        """Where the gradient on trial, as far as it is finite, is not the reference."""
        trial, given = self._trial[position], self._gradients[position]
        rounding = rounding_of(trial, given.epsilon)
        rounding += REDERIVED_ROUNDING * self._numerical.noise.epsilon * np.max(np.abs(reference), initial=0.0)
        off = np.abs(trial - reference) > self._request.tolerance * (np.abs(trial) + np.abs(reference)) + rounding
        return np.asarray(off & np.isfinite(given.values))

    # Accusations --------------------------------------------------------------------------------------------------

    def _compared(self, position: int, verified: Verified) -> ParameterTrial:
        """The whole tensor against its verified gradient; nothing is accused yet but what is not finite."""
        coordinates, given = self._theta[position].coordinates_on_trial, self._gradients[position]
        certificate = verified.certificate
        analytic, numeric = (
            values[coordinates] if len(coordinates) < len(values) else values  # no copy: it may be millions
            for values in (given.values, verified.gradient)
        )
        nothing = np.broadcast_to(np.nan, numeric.shape)
        bar = np.broadcast_to(certificate.proof.resolution / np.sqrt(max(len(numeric), 1)), numeric.shape)
        outcome = np.where(np.isfinite(analytic), Outcome.MATCH, Outcome.MISMATCH).astype(np.int8)
        stencil = Stencil(certificate.step * certificate.scale / max(1.0, self._directions.sizes[position]), 0)
        return ParameterTrial(
            coordinates,
            analytic,
            given.reached,
            EntryResults(numeric, bar, outcome, nothing, nothing, stencil),
            evaluations=2 * certificate.proof.directions,
            seconds=0.0,
            proof=certificate.proof,
        )

    def _accuse(self, verified: Mapping[int, Verified], trial: Mapping[int, ParameterTrial]) -> dict[int, Suspect]:
        """Marks the wrong coordinates of tensors that J says are wrong; returns the other suspects."""
        suspects = {p: suspect for p, found in verified.items() if (suspect := self._suspect(p, found)) is not None}
        if not suspects:
            return {}
        accuser = Confirmer(
            self._directions,
            self._numerical.eager_sampler,
            self._trial,
            {p: found.gradient for p, found in verified.items()},
            self._numerical.noise,
            self._request.tolerance,
        )
        confirmed = accuser.confirmed(suspects)
        for position in confirmed:
            places = np.searchsorted(trial[position].coordinates, suspects[position].coordinates)
            trial[position].results.outcome[places] = Outcome.MISMATCH
        for position, k in accuser.worst({p: suspects[p] for p in confirmed}):
            self._confirm_single(accuser, trial[position], position, suspects[position], k)
        return {p: suspect for p, suspect in suspects.items() if p not in confirmed}

    def _suspect(self, position: int, verified: Verified) -> Suspect | None:
        """What is wrong with a tensor, None where nothing is, or nothing that J could show."""
        off = np.flatnonzero(self._disagreeing(position, verified.gradient))
        error = verified.gradient[off] - self._trial[position][off]
        seen = float(np.linalg.norm(error)) * np.sqrt(len(self._trial[position]))
        if seen <= ACCUSATION * verified.certificate.proof.resolution:
            return None
        return Suspect(off, error, verified.certificate)

    def _confirm_single(
        self, accuser: Confirmer, trial: ParameterTrial, position: int, suspect: Suspect, k: int
    ) -> None:
        """Lets differences of J along one coordinate say what it is; where they cannot tell, the block has."""
        coordinate, error = suspect.coordinates[k : k + 1], suspect.error[k : k + 1]
        found, results = accuser.single(position, coordinate, error), trial.results
        if found.outcome[0] == Outcome.UNDECIDED:
            return
        place = int(np.searchsorted(trial.coordinates, coordinate[0]))
        for name in ("numeric", "error_bar", "outcome", "left", "right"):
            values = np.array(getattr(results, name))  # a copy: some are one number, repeated
            values[place] = getattr(found, name)[0]
            setattr(results, name, values)

    # Tensors whose gradient J does not bear out -------------------------------------------------------------------

    def _tried_directly(self, position: int, suspect: Suspect | None) -> ParameterTrial:
        """Some coordinates one by one: all of a small tensor, else a sample and those that bisection leads to."""
        started, before = time.perf_counter(), self._objective.evaluations
        entry, given = self._theta[position], self._gradients[position]
        everything = entry.coordinates_on_trial
        coordinates = everything
        if len(everything) > FEW:
            telling = np.abs(given.values) if suspect is None else suspect.sizes(len(given.values))
            telling[~np.isfinite(given.values)] = np.inf
            coordinates = _sample(everything, telling, self._request.seed)
        results = self._answer(position, coordinates)
        contradicted = False
        if len(coordinates) < len(everything) and not np.any(results.outcome == Outcome.MISMATCH):
            located = self._located(position)
            contradicted = located is not None
            fresh = np.setdiff1d(np.array(located or [], dtype=np.int64), coordinates)
            if len(fresh):
                coordinates = np.union1d(coordinates, fresh)
                results = self._answer(position, coordinates)
        remark = ""
        if len(coordinates) < len(everything):
            remark = (
                "J's slopes along directions through it are not those of its gradient; "
                f"{len(coordinates)} of {len(everything)} coordinates were tried one by one"
            )
        return ParameterTrial(
            coordinates,
            given.values[coordinates],
            given.reached,
            results,
            evaluations=self._objective.evaluations - before,
            seconds=time.perf_counter() - started,
            proof=Proof(contradicted=contradicted, remark=remark),
        )

    def _answer(self, position: int, coordinates: Indices) -> EntryResults:
        given = self._gradients[position]
        return judge_gradient(self._numerical.check(position, coordinates, given, self._progress), None)

    def _located(self, position: int) -> list[int] | None:
        """Coordinates that bisection leads to; None where no direction refutes the gradient on trial."""
        locator = Bisection(
            self._directions,
            position,
            self._trial[position],
            *self._certifier.alone(self._trial, position),
            self._numerical.noise,
            self._request.tolerance,
        )
        return list(locator.wrong_coordinates()) if locator.contradicted() else None


def _cleaned(entry: ThetaEntry, values: Floats) -> Floats:
    """With zeros in the place of what is left out or not finite."""
    finite = np.isfinite(values)
    if finite.all() and not len(entry.padding):
        return values
    cleaned = np.where(finite, values, 0.0)
    cleaned[entry.padding] = 0.0
    return cleaned


def _sample(coordinates: Indices, telling: Floats, seed: int) -> Indices:
    """Those that tell most, and others at random; sorted."""
    largest = np.argpartition(-telling[coordinates], SAMPLED // 2)[: SAMPLED // 2]
    drawn = np.random.default_rng(seed).choice(len(coordinates), SAMPLED // 2, replace=False)
    return coordinates[np.union1d(largest, drawn)]
