"""One thread for every test: on the tiny model more threads gain nothing, and on a busy machine they cost much."""

import torch

torch.set_num_threads(1)
