"""Finds the module in which a wrong gradient goes wrong: records J call by call, then checks single calls alone.

Let θ move along one coordinate in which the gradient is off by E. Every call M of a module or of a custom
autograd.Function sees its inputs x move, by their tangents ẋ, and receives a gradient ḡ for its outputs. A right
backward satisfies

    ⟨gradient for x, ẋ⟩ = d/dt ⟨ḡ, M(x + t·ẋ)⟩ at t = 0

The left side less the right side is the contribution of the call to E. It includes the calls inside of it; what remains
without them is the call's own. The contributions of all outermost calls, of parameter hooks and of the loss add up to
E. The culprit is the call with a large contribution of its own; where calls cannot be checked alone, none is named.

Where J differentiates the backward of a Function, that backward is a call of its own (`double_backward`). A Function
that makes calls in its backward hides what they contribute: each of these is judged by itself (`of_backward`). Mistakes
that do not happen to copies of tensors are looked for in another way (`overwritten`).
"""
