"""The lecture's L-layer network on real digits: backpropagation derived by hand, checked when right and when wrong.

Run it with `python examples/digits_from_scratch.py`. In the lecture's notation, the m examples are the columns
of X = A[0], and for the layers l = 1 … L

    Z[l] = W[l] A[l-1] + b[l]        A[l] = tanh(Z[l])        A[L] = softmax(Z[L])

    J = −1/m Σ_i log A[L][y_i, i]  +  λ/2m Σ_l ‖W[l]‖²
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from torch_gradcheck import Report, check_module

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Parameters = dict[str, Array]

UNITS = (64, 12, 8, 10)
"""n[0] … n[L]: 8 × 8 pixels in, ten classes out."""

L = len(UNITS) - 1
WEIGHT_DECAY = 0.7
"""λ of the L2 penalty."""


def digits() -> tuple[Array, Labels]:
    """The 1,797 images of scikit-learn's digits as columns of X, pixels in [0, 1], and their labels."""
    images = load_digits()
    return images.data.T / 16.0, images.target.astype(np.int64)


def initial_parameters(seed: int = 0) -> Parameters:
    """W[l] of variance 1/n[l-1]; b[l] small but not zero, so that nothing is checked at a special point."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for layer in range(1, L + 1):
        units, units_before = UNITS[layer], UNITS[layer - 1]
        parameters[f"W{layer}"] = rng.standard_normal((units, units_before)) / np.sqrt(units_before)
        parameters[f"b{layer}"] = rng.standard_normal((units, 1)) / 10
    return parameters


def forward(parameters: Parameters, X: Array) -> list[Array]:
    """The activations A[0] … A[L]."""
    A = [X]
    for layer in range(1, L + 1):
        Z = parameters[f"W{layer}"] @ A[-1] + parameters[f"b{layer}"]
        A.append(np.tanh(Z) if layer < L else softmax(Z))
    return A


def softmax(Z: Array) -> Array:
    """Probabilities, one column an example."""
    unnormalised = np.exp(Z - Z.max(axis=0))
    return unnormalised / unnormalised.sum(axis=0)


def cost(parameters: Parameters, X: Array, labels: Labels) -> float:
    """J: the mean cross-entropy and the L2 penalty."""
    m = labels.size
    probabilities = forward(parameters, X)[L]
    cross_entropy = -np.log(probabilities[labels, np.arange(m)]).sum() / m
    penalty = sum(np.sum(parameters[f"W{layer}"] ** 2) for layer in range(1, L + 1))
    return float(cross_entropy + WEIGHT_DECAY / (2 * m) * penalty)


def accuracy(parameters: Parameters, X: Array, labels: Labels) -> float:
    """The share of images whose most probable class is the right one."""
    return float(np.mean(forward(parameters, X)[L].argmax(axis=0) == labels))


class Backprop:
    """The gradients of J derived by hand, one formula a method: a subclass that overrides one plants a mistake."""

    def gradients(self, parameters: Parameters, X: Array, labels: Labels) -> Parameters:
        """dW[l] = ∂J/∂W[l] and db[l] = ∂J/∂b[l] of every layer, from the last to the first."""
        A = forward(parameters, X)
        Y = np.eye(UNITS[L])[:, labels]
        dZ = A[L] - Y
        gradients = {}
        for layer in range(L, 0, -1):
            W = parameters[f"W{layer}"]
            gradients[f"W{layer}"] = self.dW(dZ, A[layer - 1], W)
            gradients[f"b{layer}"] = self.db(dZ)
            if layer > 1:
                dA = W.T @ dZ  # dA[l-1] = W[l]ᵀ dZ[l]
                dZ = self.dZ(dA, A[layer - 1])
        return gradients

    def dZ(self, dA: Array, A: Array) -> Array:
        """dZ[l] = dA[l] * g'(Z[l]), where tanh'(Z[l]) = 1 − A[l]²."""
        return dA * (1 - A**2)

    def dW(self, dZ: Array, A_before: Array, W: Array) -> Array:
        """dW[l] = 1/m dZ[l] A[l-1]ᵀ + λ/m W[l]."""
        m = dZ.shape[1]
        return dZ @ A_before.T / m + WEIGHT_DECAY / m * W

    def db(self, dZ: Array) -> Array:
        """db[l] = 1/m Σ_i dZ[l](i), one column."""
        return dZ.mean(axis=1, keepdims=True)


class ForgottenPenalty(Backprop):
    """dW[l] lacks λ/m W[l], the L2 penalty's part."""

    def dW(self, dZ: Array, A_before: Array, W: Array) -> Array:
        """dW[l] = 1/m dZ[l] A[l-1]ᵀ."""
        m = dZ.shape[1]
        return dZ @ A_before.T / m


class ForgottenMean(Backprop):
    """db[l] lacks 1/m: it is a sum over the examples, not their mean."""

    def db(self, dZ: Array) -> Array:
        """db[l] = Σ_i dZ[l](i)."""
        return dZ.sum(axis=1, keepdims=True)


class ForgottenSquare(Backprop):
    """dZ[l] of the hidden layers takes 1 − A[l] for the derivative of tanh."""

    def dZ(self, dA: Array, A: Array) -> Array:
        """dZ[l] = dA[l] * (1 − A[l])."""
        return dA * (1 - A)


MISTAKES: tuple[Backprop, ...] = (ForgottenPenalty(), ForgottenMean(), ForgottenSquare())


def train(parameters: Parameters, X: Array, labels: Labels, *, steps: int = 300, rate: float = 1.0) -> Parameters:
    """The parameters after `steps` of gradient descent on the whole of X: θ := θ − rate dθ."""
    backprop = Backprop()
    for _ in range(steps):
        gradients = backprop.gradients(parameters, X, labels)
        parameters = {name: value - rate * gradients[name] for name, value in parameters.items()}
    return parameters


class Network(nn.Module):
    """The same network in torch, its parameters under the names `W1`, `b1`, … of the derivation."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Z[L], one column an example."""
        A = X
        for layer in range(1, L):
            A = torch.tanh(self.affine(layer, A))
        return self.affine(L, A)

    def affine(self, layer: int, A: torch.Tensor) -> torch.Tensor:
        """Z[l] = W[l] A[l-1] + b[l]."""
        return self.get_parameter(f"W{layer}") @ A + self.get_parameter(f"b{layer}")

    def cost(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """J of the scores Z[L]; the L2 penalty reads the weights, so they are part of it."""
        penalty = sum(self.get_parameter(f"W{layer}").square().sum() for layer in range(1, L + 1))
        return nn.functional.cross_entropy(scores.T, labels) + WEIGHT_DECAY / (2 * len(labels)) * penalty


def check(backprop: Backprop, parameters: Parameters, X: Array, labels: Labels) -> Report:
    """Holds the gradients of `backprop` against centered differences of J, coordinate by coordinate."""
    network = Network(parameters)
    return check_module(
        network,
        network.cost,
        (torch.tensor(X), torch.tensor(labels)),
        gradients=backprop.gradients(parameters, X, labels),
        method="exact",
    )


def reports() -> Iterator[tuple[str, Report]]:
    """The right derivation at random initialisation and after training, then three mistakes: each with its title."""
    X, labels = digits()
    batch = X[:, :50], labels[:50]
    parameters = initial_parameters()
    yield "Derived by hand, at random initialisation", check(Backprop(), parameters, *batch)

    trained = train(parameters, X[:, :1400], labels[:1400])
    unseen = accuracy(trained, X[:, 1400:], labels[1400:])
    yield f"Derived by hand, after training to {unseen:.0%} on unseen images", check(Backprop(), trained, *batch)

    for number, mistake in enumerate(MISTAKES, start=1):
        yield f"Mistake {number}: {mistake.__doc__}", check(mistake, parameters, *batch)


def main() -> None:
    """Prints every report under its title."""
    for title, report in reports():
        print(f"\n{title}\n\n{report}")


if __name__ == "__main__":
    main()
