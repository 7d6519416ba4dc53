"""The ranks of a torch.distributed group that share a check: one leads, the others lend a hand."""
