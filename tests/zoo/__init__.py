"""Models the promises are tested on: correct ones, planted bugs, and snapshots of what a check may not touch."""

import torch

torch.set_num_threads(1)  # on tiny models a second thread only spins: twenty times slower where the cores are busy
