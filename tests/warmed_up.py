"""Imported by the process that others fork from: all that a fit imports is there afterwards."""

import tempfile

import torch

from tests.small_runs import DIGITS, small

torch.set_num_threads(1)  # a process that has used more cannot be forked
with tempfile.TemporaryDirectory() as folder:
    small(checkpoint_dir=folder).fit(DIGITS)
