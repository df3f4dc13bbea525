"""State that the whole process shares: generators of random numbers, and modes of PyTorch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch._C._functorch import peek_interpreter_stack


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed torch on every device inside the context, and restore its global generators after."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), _preserved_mps_state():
        torch.manual_seed(seed)
        yield


@contextmanager
def _preserved_mps_state() -> Iterator[None]:
    if not torch.backends.mps.is_available():
        yield
        return
    state = torch.mps.get_rng_state()
    try:
        yield
    finally:
        torch.mps.set_rng_state(state)


def generator_states() -> dict[str, Any]:
    """Return the states of torch's generators on all devices, and of NumPy's and Python's."""
    kind, words, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": (kind, np.asarray(words, np.int64), *rest),  # torch does not pickle uint32
        "python": random.getstate(),
    }


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Restore the states that :func:`generator_states` returned, for all available generators."""
    torch.set_rng_state(states["torch"])
    for number, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, number)
    if states["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
    kind, words, *rest = states["numpy"]
    np.random.set_state((kind, words.astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])


@contextmanager
def preserved_generators(*, if_drawn: bool = True) -> Iterator[None]:
    """Restore the state of every generator at the end of the context.

    Parameters
    ----------
    if_drawn : bool, default=True
        Whether anything in the context may draw. If not, nothing is restored, because other threads
        may be drawing.
    """
    if not if_drawn:
        yield
        return
    states = generator_states()
    try:
        yield
    finally:
        set_generator_states(states)


@contextmanager
def resumed_generators(states: Mapping[str, Any]) -> Iterator[None]:
    """Draw as a run would have that ended with these states, and put every generator back."""
    with preserved_generators():
        set_generator_states(states)
        yield


def seed_from(random_state: Any) -> int:
    """Return a seed; None draws one from the system and leaves global state alone.

    Parameters
    ----------
    random_state : int, RandomState or None
        As scikit-learn takes it.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, (int, np.integer)):
        check_random_state(random_state)  # refuses what scikit-learn refuses
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31))


@contextmanager
def usual_modes() -> Iterator[None]:
    """Compute with gradients, outside of inference mode and autocast, on the CPU and in float32.

    These are the defaults of PyTorch. All but the default dtype belong to the thread. The dtype
    belongs to the process, and changes for all threads while the body runs, if it is not float32.

    Raises
    ------
    RuntimeError
        Inside a function that torch.func transforms: a network of its own cannot run there.
    """
    if peek_interpreter_stack() is not None:
        raise RuntimeError(
            "An estimator cannot be used inside a function that torch.func.vmap, grad or the like "
            "transform. Call it outside, and pass its result to the function."
        )
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
