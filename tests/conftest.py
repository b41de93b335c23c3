"""One thread per process, no network, and the fixtures that several files share."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess

# Before numpy and torch load: a test process that takes every core starves the others (measured in
# a sketch of this suite: 3.4 s against 57 s).
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell's background job passes Ctrl-C over, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def new_children() -> Callable[[], set[BaseProcess]]:
    """Lists the child processes of this test alone; a loader of an earlier one may wait for gc."""
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before
