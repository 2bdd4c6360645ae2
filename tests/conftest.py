"""What all tests share. This folder is on the import path, so that tests can import `contracts`."""

import torch

torch.set_num_threads(1)  # sums then come out the same on every machine, and ranks do not fight over cores
