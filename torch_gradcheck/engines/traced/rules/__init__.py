"""Rules: what each operation does to tensors of which K perturbations have moved a part."""
