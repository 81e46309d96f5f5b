"""Without a GPU the Triton kernels run in the interpreter, which has to be asked for before triton is first
imported.
"""

import os
import sys
from collections import deque

import pytest
import torch

if not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            "triton was imported without TRITON_INTERPRET=1: set it in tests/conftest.py, before imports"
        )
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config):
    # numpy, under the interpreter, remarks on 0 * inf in lanes that a select then drops.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    from helpers.kernel_cases import poison_new_memory

    poison_new_memory(monkeypatch)


@pytest.fixture(autouse=True)
def addresses_checked(monkeypatch):
    """In the interpreter a kernel may only touch memory of its arguments: elsewhere a GPU would end the process."""
    if torch.cuda.is_available():
        return
    from triton.runtime import interpreter

    mine = deque(maxlen=64)  # [first, last) addresses of the newest launches' tensors
    convert, builder = interpreter._implicit_cvt, interpreter.InterpreterBuilder

    def remember(argument):
        if isinstance(argument, torch.Tensor):
            storage = argument.untyped_storage()
            mine.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        return convert(argument)

    def checked(access, mask_at):
        def wrapper(self, pointers, *rest):
            used = pointers.data[rest[mask_at].data.astype(bool)]
            if used.size:
                first, last = int(used.min()), int(used.max())
                assert any(start <= first and last < end for start, end in mine), (
                    f"addresses {first:#x} to {last:#x} are in no argument"
                )
            return access(self, pointers, *rest)

        return wrapper

    monkeypatch.setattr(interpreter, "_implicit_cvt", remember)
    monkeypatch.setattr(builder, "create_masked_load", checked(builder.create_masked_load, 0))
    monkeypatch.setattr(builder, "create_masked_store", checked(builder.create_masked_store, 1))


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(1234)


@pytest.fixture
def narrow_tiles(monkeypatch):
    """Many tiles a row at small V: what a large vocabulary does to the kernel."""
    from kernels.fused import launches

    monkeypatch.setattr(launches, "INTERPRETER_BLOCK", 64)


@pytest.fixture
def narrow_slots(monkeypatch):
    """The same for the sparse kernel, whose slots then take several turns as well."""
    from kernels.fused import launches, sparse

    monkeypatch.setattr(launches, "INTERPRETER_BLOCK", 64)
    monkeypatch.setattr(sparse, "SLOT_BLOCKS", (8, 16))
