"""What torch refuses of how J makes graphs and runs backwards of its own: told with the place, and what to do.

Torch raises it where it happens, so the user's line in the traceback is the one to change.
"""

from __future__ import annotations

import re

from torch_gradcheck.objective.refused_places import first_line
from torch_gradcheck.torch_internals.refused_calls import is_raised_by_the_user

OF_GRAPHS = (
    (
        r"a leaf Variable that requires grad (?:is being|has been) used in an in-place operation",
        "writes to a parameter, or another leaf that requires grad, whose old value its gradient belongs to",
        "compute a new tensor, as w * 2 in place of w.mul_(2)",
    ),
    (
        r"a view of a leaf Variable that requires grad is being used in an in-place operation",
        "writes to part of a parameter, or of another leaf that requires grad, whose old value its gradient belongs to",
        "compute a new tensor, as with torch.where, or write to a copy, as w.clone()",
    ),
    (
        r"Inference tensors cannot be saved for backward",
        "computes with what was made under torch.inference_mode(), which autograd does not take",
        "compute that under torch.no_grad() instead, or take a copy of it, by .clone()",
    ),
    (
        r"Inplace update to inference tensor outside InferenceMode",
        "writes to what was made under torch.inference_mode()",
        "compute that under torch.no_grad() instead, or take a copy of it, by .clone()",
    ),
    (
        r"Can't call numpy\(\) on Tensor that requires grad",
        "leaves torch for numpy, where there is no gradient",
        "compute this in operations of torch, or in an autograd.Function with a backward of its own",
    ),
    (
        r"element \d+ of tensors does not require grad and does not have a grad_fn",
        "asks for the gradient of something that no parameter or input has a part in, for autograd",
        "look for a detach(), .data, .item() or torch.no_grad() on the way there",
    ),
    (
        r"(?:The differentiated Tensor at index (\d+)|One of the differentiated Tensors) appears to not have been used",
        "asks for a gradient of a tensor in which the differentiated one has no part",
        "ask for those alone that it depends on, or have None in their place, by allow_unused=True",
    ),
    (
        r"One of the differentiated Tensors does not require grad",
        "asks for the gradient of a tensor that requires none",
        "have it require one before it is used, by .requires_grad_()",
    ),
    (
        r"grad can be implicitly created only for scalar outputs",
        "runs a backward from a tensor with several entries",
        "make one number of it, by .sum() or .mean(), or say what its entries count (grad_outputs, or backward(v))",
    ),
    (
        r"Trying to backward through the graph a second time",
        "runs a backward through a graph that an earlier backward has freed",
        "add the losses up and run one backward, or keep the graph in the first, by retain_graph=True; what is "
        "remembered from an earlier call has to be detached",
    ),
    (
        r"cannot register a hook on a tensor that doesn't require grad",
        "registers a hook on a tensor that requires no gradient",
        "register it where the tensor requires one: if y.requires_grad",
    ),
    (
        r"can't retain_grad on Tensor that has requires_grad=False",
        "has a tensor that requires no gradient keep it",
        "have it do so where the tensor requires one: if y.requires_grad",
    ),
    (
        r"When use_reentrant=True, torch\.utils\.checkpoint is incompatible",
        "asks torch.autograd.grad for a gradient that goes through a reentrant checkpoint",
        "make the checkpoint with use_reentrant=False",
    ),
    (
        r"Output of saved tensor unpack_hook expected to be a Tensor",
        "unpacks what was saved for the backward to something that is no tensor",
        "have the second hook of saved_tensors_hooks return the tensor that the first one was given",
    ),
    (
        r"vmap: It looks like you're (?:attempting to use a Tensor in some data-dependent|calling \.item\(\))",
        "reads the numbers of a tensor, or decides by them, of which torch.vmap has as many as there are samples",
        "compute it in operations of torch, as torch.where",
    ),
    (
        r"Output \d+ of \w+ is a view and is being modified inplace|A view was created in no_grad mode and is being",
        "writes to a view that autograd cannot follow such a write through",
        "write to a copy of it, by .clone(), or compute a new tensor",
    ),
)
"""How torch speaks of graphs: its words, what the code does, and what to do."""


def of_graph(error: Exception) -> tuple[str, str] | None:
    """What J does to its graph that torch has refused, and what to do; None of other things."""
    if not isinstance(error, RuntimeError | TypeError) or is_raised_by_the_user(error):
        return None
    said = first_line(error)
    return next((found[1:] for found in OF_GRAPHS if re.match(found[0], said)), None)
