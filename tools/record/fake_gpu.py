"""A GPU that computes nothing: full-size code runs on tensors that have a shape, a type and a device only.

PyTorch's FakeTensorMode gives the tensors. What it lacks is stood in for here: random numbers, questions to
the driver, and `Params4bit`, which bitsandbytes makes of a tensor's bytes. Works without CUDA. What it cannot
show is whether the kernels run, how fast, and the backward pass.
"""

import contextlib
import ctypes
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import bitsandbytes as bnb
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aurora_lib.course.machine import GIB
from aurora_lib.model import nf4

# how the names of operations end that hand a number or a shape to the CPU, which waits for the device
WAITS = ("_local_scalar_dense", "item", "nonzero", "unique", "unique2", "masked_select", "bincount", "equal")


class Operations(TorchDispatchMode):
    """Lists the operations under it as (name, device types), and knows the storages on the fake GPU."""

    def __init__(self):
        super().__init__()
        self.seen, self._alive = [], weakref.WeakValueDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        self.seen.append((function._schema.name, {x.device.type for x in tensors}))
        for tensor in tensors:
            if tensor.device.type == "cuda":
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = storage
        return out

    @property
    def names(self) -> set[str]:
        """Of the operations, such as `aten::mm`."""
        return {name for name, _ in self.seen}

    @property
    def waits(self) -> list[str]:
        """Operations that wait for the device, or have a tensor on the CPU: no CUDA graph captures them."""
        return [name for name, devices in self.seen if name.endswith(WAITS) or "cpu" in devices]

    @property
    def allocated(self) -> int:
        """Bytes of the tensors that are alive, as the allocator counts them: in steps of 512."""
        gc.collect()
        return sum(-(-storage.nbytes() // 512) * 512 for storage in self._alive.values())


class _Marked(type):
    def __instancecheck__(cls, instance):
        return isinstance(instance, torch.Tensor) and hasattr(instance, "bnb_quantized")


class FakeParams4bit(metaclass=_Marked):
    """Makes a parameter with the attributes of `Params4bit`: a subclass would no longer be a fake tensor.

    What is on the fake GPU is quantized at once, rather than when it moves there.
    """

    def __new__(cls, data, requires_grad=False, quant_state=None, bnb_quantized=False, **settings):
        how = dict(blocksize=64, compress_statistics=True, quant_type="fp4", quant_storage=torch.uint8)
        how |= {key: settings[key] for key in how if settings.get(key) is not None}
        if data.device.type == "cuda" and not bnb_quantized:
            data, quant_state = bnb.functional.quantize_4bit(data.detach(), **how)
            bnb_quantized = True
        parameter = nn.Parameter(data.detach(), requires_grad=False)
        how |= dict(quant_state=quant_state, bnb_quantized=bnb_quantized, module=settings.get("module"))
        parameter.__dict__.update(how)
        return parameter


@contextlib.contextmanager
def fake_gpu():
    """Under it `device="cuda:0"` is a fake GPU of 80 GiB; gives the list of operations."""
    generator = SimpleNamespace(device=torch.device("cuda:0"), manual_seed=lambda seed: generator)
    cuda = dict(current_device=lambda: 0, mem_get_info=lambda *_: (80 * GIB, 80 * GIB))
    cuda |= dict.fromkeys(("memory_reserved", "memory_allocated"), lambda *_: 0)
    cuda |= dict(get_device_capability=lambda *_: (9, 0))  # an H100's
    cuda |= dict(is_current_stream_capturing=lambda: True)  # the code is to do what it does in a CUDA graph
    with contextlib.ExitStack() as stack:
        stack.enter_context(_device_guard())
        stack.enter_context(patch.multiple(torch.cuda, **cuda))
        stack.enter_context(patch.object(torch, "Generator", lambda device: generator))
        stack.enter_context(patch.object(nf4._Drawn, "__getitem__", _drawn))
        for where in (bnb.nn, bnb.nn.modules):
            stack.enter_context(patch.object(where, "Params4bit", FakeParams4bit))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        # a table of levels that bitsandbytes makes once and keeps
        stack.enter_context(patch.dict(bnb.functional.name2qmap, dynamic=torch.empty(256, device="cuda")))
        yield stack.enter_context(Operations())


@contextlib.contextmanager
def _device_guard():
    """Where PyTorch has no functions to choose a CUDA device, those of `meta` stand in: they do nothing."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    table = (ctypes.c_void_p * 21).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # c10::DeviceType
    before, table[cuda] = table[cuda], table[cuda] or table[meta]
    try:
        yield
    finally:
        table[cuda] = before


def _drawn(self, _):
    return torch.empty(self.shape, dtype=self.dtype, device="cuda")
