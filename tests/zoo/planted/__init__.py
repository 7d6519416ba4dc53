"""Planted wrong gradients: a mistake from real life a row, with its correct twin and what a check should say."""

from tests.zoo.planted.activations import activation_bugs
from tests.zoo.planted.by_hand import hand_written_bugs
from tests.zoo.planted.graphs import graph_bugs
from tests.zoo.planted.hooks import hook_bugs, random_bugs
from tests.zoo.planted.linear import linear_bugs
from tests.zoo.planted.losses import loss_bugs
from tests.zoo.planted.normalisations import normalisation_bugs
from tests.zoo.planted.places import network_bugs, place_bugs
from tests.zoo.planted.pretrained import pretrained_bugs
from tests.zoo.planted.row import Planted, Problem
from tests.zoo.planted.sequences import other_bugs, sequence_bugs
from tests.zoo.planted.shapes import embedding_bugs, shape_bugs
from tests.zoo.planted.truth import truly_wrong

SMALL: list[Planted] = [
    *linear_bugs(),
    *activation_bugs(),
    *normalisation_bugs(),
    *shape_bugs(),
    *embedding_bugs(),
    *graph_bugs(),
    *hook_bugs(),
    *random_bugs(),
    *sequence_bugs(),
    *other_bugs(),
    *loss_bugs(),
    *hand_written_bugs(),
    *place_bugs(),
    *network_bugs(),
]
"""In models of plain torch, whose batch is a tuple of tensors."""

PLANTED: list[Planted] = [*SMALL, *pretrained_bugs()]

__all__ = ["PLANTED", "SMALL", "Planted", "Problem", "truly_wrong"]
