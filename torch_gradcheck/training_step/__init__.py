"""`.grad` on trial, as a training step left it: judged by what rounding in the step's own precision may do."""
