"""torch.autograd.gradcheck and gradgradcheck, with their signatures and the meaning of their arguments."""
