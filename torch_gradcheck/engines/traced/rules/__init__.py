"""Rules: what each operation makes of tensors that K perturbations have changed in part."""
