"""In which module a wrong gradient goes wrong: one run of J recorded call by call, then single calls checked alone.

Let θ move along one coordinate in which the gradient is known to be wrong, by E. Every call of a module or of a custom
autograd.Function sees its inputs move (their tangents ẋ), and receives a gradient ḡ for its outputs. Alone, it should
satisfy d/dt ⟨ḡ, M(x + t·ẋ)⟩ = ⟨its gradient for x, ẋ⟩; what it is off by is its part of E. The part of a call less the
parts of the calls inside of it is its own, and the parts of all calls, parameter hooks and the loss add up to E: so the
mistake is where the error is, and where the sum does not come out nobody is accused.
"""
