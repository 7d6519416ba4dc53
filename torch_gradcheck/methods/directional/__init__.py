"""J along directions through several tensors, and gradients that its slopes there contradict."""
