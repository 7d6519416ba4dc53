"""Ways to evaluate J at many perturbed parameters, behind one interface."""
