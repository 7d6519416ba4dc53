"""Kinks taken together: directions through several kinked coordinates along which J should have one slope.

Where three entries tie for a maximum, J has a kink along each of them, and whatever lies between its one-sided slopes
is excused there. Along a direction that keeps the tie, all pieces of J that meet at θ have the same slope s. Then every
generalised gradient has it, whichever piece it chooses and however it mixes them: it lies in the convex hull of
gradients of these pieces (Clarke, "Optimization and Nonsmooth Analysis", 1983), and ⟨g, v⟩ = s for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torch_gradcheck.arrays import Flags, Floats

VARIES = 1e-3
"""A derivative has a kink at θ where it differs by more than this share of itself between points right beside θ."""

SPANNED = 1e-3
"""Differences between pieces shorter than this, relative to the gradient, are curvature and not pieces."""

CONTRADICTS = 1e-3
"""How far off a gradient is along a direction, relative to its length, for the direction to be tried."""

CHANGED = 0.05
"""Entries count as wrong where the nearest gradient that J allows is further off than 5 % of its furthest entry."""


def kinked(nearby: Floats) -> Flags:
    """Entries whose derivative differs from point to point right beside θ, shape (N,).

    Args:
        nearby: shape (K, N), gradients at K points.
    """
    size = np.max(np.abs(nearby), axis=0)
    return np.asarray(np.ptp(nearby, axis=0) > VARIES * size)


def joint_directions(on_trial: Floats, reference: Floats, nearby: Floats, more: Sequence[Floats]) -> list[Floats]:
    """Unit vectors along which all pieces of J near θ have one slope that the gradient on trial has not.

    First the direction along which it is furthest from all mixtures of the pieces, where these are few enough to be
    spanned by their gradients at K points; then the gradient itself and others that keep the usual ties.

    Args:
        on_trial: shape (N,), a gradient.
        reference: shape (N,), another by the formulas of torch; its own convention at the kink counts as a piece.
        nearby: shape (K, N), gradients of the pieces, at K random points beside θ.
        more: directions to try besides, shape (N,) each.
    """
    size = float(np.max(np.linalg.norm(nearby, axis=1), initial=float(np.linalg.norm(on_trial))))
    pieces = np.vstack([nearby[1:] - nearby[0], reference - nearby[0]])
    error = on_trial - reference
    tried = [_beyond(pieces, error, SPANNED * size), on_trial, *more]
    units = [direction / length for direction in tried if (length := float(np.linalg.norm(direction))) > 0]
    return [
        unit
        for unit in units
        if abs(error @ unit) > CONTRADICTS * size and np.max(np.abs(pieces @ unit)) < VARIES * abs(error @ unit)
    ]


def nearest_allowed(on_trial: Floats, slope: float, unit: Floats) -> tuple[Floats, Flags]:
    """The nearest gradient that has this slope along a unit vector, and the entries that differ from those on trial."""
    change = (slope - on_trial @ unit) * unit
    return on_trial + change, np.asarray(np.abs(change) > CHANGED * np.max(np.abs(change)))


def _beyond(pieces: Floats, error: Floats, shortest: float) -> Floats:
    """The part of `error` that is orthogonal to all pieces, shape (N,)."""
    _, lengths, rows = np.linalg.svd(pieces, full_matrices=False)
    basis = rows[lengths > shortest]
    return np.asarray(error - basis.T @ (basis @ error))
