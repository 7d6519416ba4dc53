"""The projected method: every gradient is verified along random directions, or contradicted by differences of J."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from torch_gradcheck.arrays import Flags, Floats, Indices, blocks, largest_entry
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.engines.selection import on_refusals
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.coordinates import Coordinates
from torch_gradcheck.methods.directional.confirm import Confirmer, Suspect
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.methods.projected.bisect import Bisection
from torch_gradcheck.methods.projected.detection_power import MISSED
from torch_gradcheck.methods.projected.single import largest_step, worst
from torch_gradcheck.methods.projected.verify import Certificate, Verifier
from torch_gradcheck.objective.perturbation import real_view
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.verdicts.entry_check import CONTRADICTION, EntryResults, Outcome, rounding_of
from torch_gradcheck.verdicts.judge import judge_gradient, judge_once
from torch_gradcheck.verdicts.trial import ParameterTrial, Proof

EVALUATIONS = 60
"""About how many evaluations of J a correct model takes; the length of the progress bar."""

REDERIVED_ROUNDING = 1024.0
"""How many machine epsilons of the largest entry two right gradients may differ by: 2.3e-13 of it in float64."""

TRIED_WHOLE = 64
"""Where directions decide nothing, a tensor of up to this many coordinates is differenced at every one of them."""

SAMPLED = 16
"""How many coordinates of a larger tensor are differenced instead."""


@dataclass(frozen=True)
class Verified:
    """A gradient of one tensor that J agrees with along random directions.

    Attributes:
        gradient: shape (coordinates,), zero at padding: the gradient by the trace of J or, failing that, the one on
            trial.
        certificate: what the directions prove of it.
        on_trial: whether it is the one on trial, for want of another; nothing else is compared with that.
    """

    gradient: Floats
    certificate: Certificate
    on_trial: bool


def projected_trials(
    problem: Problem, gradients: Mapping[int, AnalyticGradient], progress: ProgressBar
) -> dict[int, ParameterTrial]:
    """Every checked parameter's gradient against J along directions, by position in θ."""
    return Projected(problem, gradients, progress).trials()


def projected_notes(problem: Problem, rows: Sequence[ParameterReport]) -> list[str]:
    """The notes on the detection power of the directions, and on why no record of J gave the gradient they verified."""
    return [_on_directions(rows), on_refusals(problem.refused, problem.model, "")]


def _on_directions(rows: Sequence[ParameterReport]) -> str:
    """The note on the detection power of the random directions; "" where they verified nothing."""
    verified = [row for row in rows if row.status is Status.MATCH and row.directions]
    if not verified:
        return ""
    least = max(verified, key=lambda row: row.detectable)
    entries = sum(row.checked for row in verified)
    return (
        f"{entries:,} entries were compared with a second gradient, which was verified by the slopes of J along "
        f"{least.directions} random directions: in any tensor, an error of {least.detectable:.0e} of its gradient "
        f"would have been missed with odds of {MISSED:.0e}"
    )


class Projected:
    """Tries the gradients of a large θ along random directions.

    Args:
        problem: J, θ and the options.
        gradients: the gradients on trial, by position in θ.
        progress: advanced at every evaluation.
    """

    def __init__(self, problem: Problem, gradients: Mapping[int, AnalyticGradient], progress: ProgressBar) -> None:
        self._problem, self._theta, self._request = problem, problem.theta, problem.request
        self._gradients, self._progress = gradients, progress
        self._coordinates = Coordinates(problem, progress)
        self._directions = problem.directions
        self._on_trial = {position: _cleaned(self._theta[position], g.values) for position, g in gradients.items()}

    def trials(self) -> dict[int, ParameterTrial]:
        """The trial of every checked parameter, by position, in the order of θ."""
        self._progress.start(EVALUATIONS, "directions")
        self._problem.give_back_freed_memory()
        verified = self._verified()
        trials = {position: self._compared(position, found) for position, found in verified.items()}
        unconfirmed = self._mark_confirmed(verified, trials)
        for position in self._theta.checked:
            if position not in trials or position in unconfirmed:
                trials[position] = self._tried_directly(position, unconfirmed.get(position))
        return {position: trials[position] for position in self._theta.checked}

    # The gradient that is verified --------------------------------------------------------------------------------

    def _verified(self) -> dict[int, Verified]:
        """Verified gradients by position: the rederived one or, where J contradicts that, the one on trial."""
        rederived = self._rederived()
        references = {p: self._on_trial[p] if found is None else found for p, found in rederived.items()}
        certificates, refused = self._certified(references, self._theta.checked)
        verified = {p: Verified(references[p], found, rederived[p] is None) for p, found in certificates.items()}
        others = [p for p in refused if len(self._disagreeing(p, references[p]))]
        if others:
            certificates, _ = self._certified(self._on_trial, others)
            verified |= {p: Verified(self._on_trial[p], found, on_trial=True) for p, found in certificates.items()}
        return {p: found for p, found in verified.items() if not self._proves_too_little(found)}

    def _certified(
        self, gradients: Mapping[int, Floats], positions: Sequence[int]
    ) -> tuple[dict[int, Certificate], list[int]]:
        """What `Verifier.certify` finds of these tensors, those together along which J has the same noise."""
        certificates: dict[int, Certificate] = {}
        refused: list[int] = []
        noises = [self._problem.noise_along([position]) for position in positions]
        for noise in dict.fromkeys(noises):
            group = [position for position, each in zip(positions, noises, strict=True) if each == noise]
            found, failed = self._verifier(noise).certify(gradients, group)
            certificates, refused = certificates | found, refused + failed
        return certificates, refused

    def _verifier(self, noise: Noise) -> Verifier:
        return Verifier(self._directions, noise, self._request.tolerance, self._request.eps)

    def _proves_too_little(self, found: Verified) -> bool:
        """Whether to difference a verified gradient entry by entry as well: it is small and only coarsely verified.

        Holds where the gradient on trial is its own reference, so that nothing else would be compared with it.
        """
        length = float(np.linalg.norm(found.gradient))
        coarse = found.certificate.proof.resolution > self._request.tolerance * length > 0
        return found.on_trial and coarse and len(found.gradient) <= TRIED_WHOLE

    def _rederived(self) -> dict[int, Floats | None]:
        """Gradients by position from the engine's trace of J; None where the trace gives no usable one."""
        engine = self._problem.engine
        try:
            found = engine.gradients()
        except Untraceable as refusal:
            engine.refused[None], found = refusal, None
        if found is None:
            return dict.fromkeys(self._theta.checked)
        self._problem.give_back_freed_memory()
        usable: dict[int, Floats | None] = {}
        for position in self._theta.checked:
            usable[position], found[position] = self._usable(position, found[position]), None
        return usable

    def _usable(self, position: int, gradient: torch.Tensor | None) -> Floats | None:
        """The gradient, shape (coordinates,), None if it is not finite; equal ones are held once."""
        entry = self._theta[position]
        if gradient is None:
            return np.zeros(entry.coordinates)
        dense = gradient.detach().to_dense() if gradient.layout is not torch.strided else gradient.detach()
        flat = real_view(dense.resolve_conj()).reshape(-1).double().numpy(force=True)
        if not np.isfinite(flat).all():
            return None
        cleaned, on_trial = _cleaned(entry, flat), self._on_trial[position]
        return on_trial if np.array_equal(cleaned, on_trial) else cleaned

    def _disagreeing(self, position: int, reference: Floats) -> Indices:
        """Coordinates where the gradient on trial is finite and differs from the reference by more than may be."""
        on_trial, given = self._on_trial[position], self._gradients[position]
        largest, noise = largest_entry(on_trial), self._problem.noise.epsilon
        of_reference = REDERIVED_ROUNDING * noise * largest_entry(reference)

        def off(block: slice) -> Flags:
            one, other = on_trial[block], reference[block]
            rounding = rounding_of(one, given.epsilon, largest) + given.error_bar
            rounding += of_reference
            allowed = self._request.tolerance * (np.abs(one) + np.abs(other)) + rounding
            return np.asarray((np.abs(one - other) > allowed) & np.isfinite(given.values[block]))

        found = [np.flatnonzero(off(block)) + block.start for block in blocks(len(on_trial))]
        return np.concatenate([*found, np.empty(0, dtype=np.int64)])

    # Suspects and their confirmation ------------------------------------------------------------------------------

    def _compared(self, position: int, verified: Verified) -> ParameterTrial:
        """The trial of a tensor against its verified gradient; so far, only entries that are not finite are wrong."""
        coordinates, given = self._coordinates_on_trial(position), self._gradients[position]
        certificate = verified.certificate
        analytic, numeric = (
            values if isinstance(coordinates, range) else values[coordinates]  # no copy: it may be millions
            for values in (given.values, verified.gradient)
        )
        nothing = np.broadcast_to(np.nan, numeric.shape)
        error_bar = np.broadcast_to(certificate.proof.resolution / np.sqrt(max(len(numeric), 1)), numeric.shape)
        outcome = np.full(len(analytic), Outcome.MATCH, dtype=np.int8)
        outcome[~np.isfinite(analytic)] = Outcome.MISMATCH
        stencil = Stencil(certificate.step * certificate.scale / max(1.0, self._directions.sizes[position]), 0)
        return ParameterTrial(
            coordinates,
            analytic,
            given.reached,
            EntryResults(numeric, error_bar, outcome, nothing, nothing, stencil),
            evaluations=2 * certificate.proof.directions,
            seconds=0.0,
            proof=certificate.proof,
        )

    def _coordinates_on_trial(self, position: int) -> Indices | range:
        """The flat coordinates of a tensor that are tried: all but padding."""
        entry = self._theta[position]
        return entry.coordinates_on_trial if len(entry.padding) else range(entry.coordinates)

    def _mark_confirmed(
        self, verified: Mapping[int, Verified], trials: Mapping[int, ParameterTrial]
    ) -> dict[int, Suspect]:
        """Marks the coordinates of suspects that J confirms as wrong, in `trials`; returns the other suspects."""
        suspects = {p: suspect for p, found in verified.items() if (suspect := self._suspect(p, found)) is not None}
        if not suspects:
            return {}
        substitute = self._problem.engine.value_substitute
        noise_along, tolerance = self._problem.noise_along, self._request.tolerance
        confirmer = Confirmer(self._directions, noise_along, tolerance, substitute=substitute)
        confirmed = confirmer.confirmed(suspects)
        for position in confirmed:
            places = trials[position].entries(suspects[position].coordinates)
            trials[position].results.outcome[places] = Outcome.MISMATCH
        for position, k in worst({p: suspects[p] for p in confirmed}):
            self._confirm_single(trials[position], position, suspects[position], k)
        return {p: suspect for p, suspect in suspects.items() if p not in confirmed}

    def _suspect(self, position: int, verified: Verified) -> Suspect | None:
        """The suspected entries of a tensor; None where there are none, or where J could not resolve their error."""
        off = self._disagreeing(position, verified.gradient)
        if not len(off):
            return None
        on_trial, certificate = self._on_trial[position], verified.certificate
        length = certificate.scale * float(np.sqrt(len(on_trial)))  # as of a random direction's components
        suspect = Suspect(off, on_trial[off], verified.gradient[off], len(on_trial), length, certificate.step)
        return suspect if suspect.signal > CONTRADICTION * certificate.proof.resolution * certificate.scale else None

    def _confirm_single(self, trial: ParameterTrial, position: int, suspect: Suspect, k: int) -> None:
        """Judges one coordinate by differences of J along it; where these do not decide, the block's outcome stays."""
        size, coordinate = self._directions.sizes[position], int(suspect.coordinates[k])
        unit = largest_step(suspect, k, size, self._problem.noise_along([position]))
        found = judge_once(self._coordinates.single(position, coordinate, self._gradients[position], unit, size))
        if found.outcome[0] == Outcome.UNDECIDED:
            return
        results, place = trial.results, int(trial.entries(coordinate))
        for name in ("numeric", "error_bar", "outcome", "left", "right"):
            values = np.array(getattr(results, name))  # a copy: some are one number broadcast
            values[place] = getattr(found, name)[0]
            setattr(results, name, values)

    # Tensors whose gradient J contradicts -------------------------------------------------------------------------

    def _tried_directly(self, position: int, suspect: Suspect | None) -> ParameterTrial:
        """The trial of single coordinates: all of a small tensor, else a sample and those that bisection finds."""
        started, before = time.perf_counter(), self._problem.objective.evaluations
        entry, given = self._theta[position], self._gradients[position]
        everything = entry.coordinates_on_trial
        coordinates = everything
        if len(everything) > TRIED_WHOLE:
            informative = np.abs(given.values) if suspect is None else suspect.sizes()
            informative[~np.isfinite(given.values)] = np.inf
            coordinates = _sample(everything, informative, self._request.seed)
        results = self._judged(position, coordinates)
        contradicted = False
        if len(coordinates) < len(everything) and not np.any(results.outcome == Outcome.MISMATCH):
            located = self._bisected(position)
            contradicted = located is not None
            fresh = np.setdiff1d(np.array(located or [], dtype=np.int64), coordinates)
            if len(fresh):
                coordinates = np.union1d(coordinates, fresh)
                results = self._judged(position, coordinates)
        remark = ""
        if len(coordinates) < len(everything):
            remark = (
                "J's slope along random directions through it is not the one that its gradient predicts; "
                f"{len(coordinates)} of {len(everything)} coordinates were then tried one by one"
            )
        return ParameterTrial(
            coordinates,
            given.values[coordinates],
            given.reached,
            results,
            evaluations=self._problem.objective.evaluations - before,
            seconds=time.perf_counter() - started,
            proof=Proof(contradicted=contradicted, remark=remark),
        )

    def _judged(self, position: int, coordinates: Indices) -> EntryResults:
        given = self._gradients[position]
        return judge_gradient(self._coordinates.entry_check(position, coordinates, given), None)

    def _bisected(self, position: int) -> list[int] | None:
        """Coordinates that bisection finds; None where the directions do not contradict the gradient on trial."""
        noise = self._problem.noise_along([position])
        bisection = Bisection(
            self._directions,
            position,
            self._on_trial[position],
            *self._verifier(noise).alone(self._on_trial, position),
            noise,
            self._request.tolerance,
        )
        return list(bisection.wrong_coordinates()) if bisection.contradicted() else None


def _cleaned(entry: ThetaEntry, values: Floats) -> Floats:
    """The values with 0 at padding and where they are not finite; the array itself where there is neither."""
    finite = np.isfinite(values)
    if finite.all() and not len(entry.padding):
        return values
    cleaned = np.where(finite, values, 0.0)
    cleaned[entry.padding] = 0.0
    return cleaned


def _sample(coordinates: Indices, informative: Floats, seed: int) -> Indices:
    """`SAMPLED` of the coordinates, sorted: half are the most informative, half are drawn at random."""
    largest = np.argpartition(-informative[coordinates], SAMPLED // 2)[: SAMPLED // 2]
    drawn = np.random.default_rng(seed).choice(len(coordinates), SAMPLED // 2, replace=False)
    return coordinates[np.union1d(largest, drawn)]
