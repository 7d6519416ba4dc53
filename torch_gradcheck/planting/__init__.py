"""Faults planted in the backward of a model, one at a time, to learn which of them a check would find."""
