"""A GPU that is not there: tensors that say they lie on one, and lie on the CPU.

Operators refuse to mix them with the CPU's own, as a GPU's do; what waits for the device is written down, and refused
while a call is recorded. So what a GPU would refuse shows where there is none; its speed and its rounding do not.
"""

from __future__ import annotations

import ctypes
import traceback
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""May take indices from the CPU, for which they wait; masks among them have to be counted first."""


class OnGpu(Tensor):
    """Says that it lies on the GPU; ``inner`` holds the numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # else what is brought to the CPU would have to be one

    @staticmethod
    def __new__(cls, inner):
        with torch.inference_mode(False):  # those of an inference cannot be views of others
            return Tensor._make_wrapper_subclass(
                cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                layout=inner.layout, device=GPU,
            )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return _computed(operator, args, kwargs or {})


class _Computing(TorchDispatchMode):
    """Also what composite operators make on the GPU of nothing that lies there."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return _computed(operator, args, kwargs or {})


class _Calling(TorchFunctionMode):
    """What PyTorch would look for a GPU for before it calls an operator."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        first = args[0] if args else None
        if name in ("to", "cuda") and isinstance(first, Tensor):
            return _moved(function, args, kwargs)
        if isinstance(first, OnGpu):
            if name == "tolist":
                _wait("tolist")
                return first.inner.tolist()
            if name == "numpy":
                raise TypeError("numpy() of a tensor on the GPU")
            if name == "scaled_dot_product_attention":  # older PyTorch asks the GPU's libraries for the fastest way
                if not all(isinstance(one, OnGpu) for one in (*args, *kwargs.values()) if isinstance(one, Tensor)):
                    raise RuntimeError(f"{name}: Expected all tensors to be on the same device")
                return OnGpu(function(*map(_inner, args), **tree_map(_inner, kwargs)))
            if name in ("__getitem__", "__setitem__"):
                at = args[1] if isinstance(args[1], tuple) else (args[1],)
                if any(isinstance(part, list) for part in at):
                    _wait("a list as an index")
                    at = tuple(OnGpu(torch.tensor(part)) if isinstance(part, list) else part for part in at)
                    args = (first, at, *args[2:])
        device = kwargs.get("device")
        if isinstance(device, (str, torch.device)) and torch.device(device).type == "cuda":
            if name in ("tensor", "as_tensor"):
                _wait(f"torch.{name}")
            if not isinstance(first, OnGpu):
                return OnGpu(function(*args, **{**kwargs, "device": CPU}))
            del kwargs["device"]
        return function(*args, **kwargs)


class _Generator(torch.Generator):
    """Of random numbers on the GPU, which are those that the CPU draws."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, device=CPU)


class PretendedGpu:
    """Within ``with PretendedGpu() as gpu``, PyTorch has one GPU for the calling thread, without half precision.

    Attributes:
        waits: what has waited for it, and where in the package.
    """

    def __enter__(self):
        self.waits, self.recording, self._stack = [], False, ExitStack()
        self._stack.enter_context(_cpu_guards())
        _current.append(self)
        self._stack.callback(_current.pop)
        for name, replacement in {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.device_count": lambda: 1,
            "torch.cuda.current_device": lambda: 0,
            "torch.cuda.mem_get_info": lambda device=None: (2**36, 2**36),
            "torch.cuda.synchronize": lambda device=None: self.waits.append("synchronize"),
            "torch.cuda.device": lambda device: nullcontext(),
            "torch.Generator": _Generator,
            "famsam.recordings.cuda_graph": self.record,
        }.items():
            self._stack.enter_context(mock.patch(name, replacement))
        replaced = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, replaced)
        self._stack.enter_context(_Calling())
        self._stack.enter_context(_Computing())
        return self

    def __exit__(self, *error):
        self._stack.close()

    def record(self, call, device, rehearsals=1):
        """As ``recordings.cuda_graph``: whatever waits or takes from the CPU is refused, in each replay, too."""
        from famsam.recordings import _tensors

        call()
        with self._no_waiting():
            result = call()

        def replay():
            with self._no_waiting():
                for kept, new in zip(_tensors(result), _tensors(call())):
                    kept.copy_(new)

        return replay, result

    @contextmanager
    def _no_waiting(self):
        self.recording = True
        try:
            yield
        finally:
            self.recording = False


_current = []  # the innermost one that is entered


def _wait(what):
    frames = [frame for frame in traceback.extract_stack() if "famsam" in Path(frame.filename).parts]
    where = f" in {Path(frames[-1].filename).name}, {frames[-1].name}" if frames else ""
    _current[-1].waits.append(f"{what}{where}")
    if _current[-1].recording:
        raise RuntimeError(f"cannot be recorded: {what}{where} waits for the device, or takes what the CPU holds")


def _computed(operator, args, kwargs):
    """What an operator returns: on the GPU if something that it takes lies there, or if it is asked to."""
    made_of_others = torch._C.DispatchKey.CompositeImplicitAutograd
    if torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), made_of_others):
        with _Computing():  # in an inference, they come whole
            return operator._op_dk(made_of_others, *args, **kwargs)
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    here = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim()]
    asked = kwargs.get("device")
    to_gpu = bool(there) if asked is None else torch.device(asked).type == "cuda"
    inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    if asked is not None:
        inner_kwargs["device"] = CPU
    if operator in (aten._to_copy.default, aten.copy_.default):
        if len({isinstance(tensor, OnGpu) for tensor in tensors} | {to_gpu}) > 1:
            _wait("a copy")
        result = operator(*inner_args, **inner_kwargs)
        if operator is aten.copy_.default:
            return args[0]
        return OnGpu(result) if to_gpu else result
    if there:
        indices = args[1] if operator in INDEXING else ()
        if here and (operator not in INDEXING or not isinstance(args[0], OnGpu)):
            shapes = [(tuple(tensor.shape), tensor.device.type) for tensor in tensors]
            raise RuntimeError(f"{operator}: Expected all tensors to be on the same device, got {shapes}")
        if operator in WAITING or here or any(index is not None and index.dtype == torch.bool for index in indices):
            _wait(str(operator))
    result = operator(*inner_args, **inner_kwargs)
    if not to_gpu or operator is aten._local_scalar_dense.default:
        return result
    outer = {id(tensor.inner): tensor for tensor in there}  # what an operator has written into stays what it was
    return tree_map(lambda r: (outer[id(r)] if id(r) in outer else OnGpu(r)) if isinstance(r, Tensor) else r, result)


def _inner(value):
    return value.inner if isinstance(value, OnGpu) else value


def _moved(function, args, kwargs):
    """``Tensor.to`` and ``Tensor.cuda``."""
    tensor, others = args[0], [value for value in args[1:] if value is not None]
    device = GPU if function is Tensor.cuda else kwargs.get("device")
    for value in others:
        if isinstance(value, (str, torch.device)):
            device = torch.device(value)
        elif isinstance(value, Tensor):
            device, kwargs["dtype"] = value.device, value.dtype
        elif isinstance(value, torch.dtype):
            kwargs["dtype"] = value
        elif isinstance(value, bool):
            kwargs["non_blocking"] = value
    if device is None or (torch.device(device).type == "cuda") == isinstance(tensor, OnGpu):
        kwargs.pop("device", None)
        return Tensor.to(tensor, **kwargs) if kwargs.keys() - {"non_blocking"} else tensor
    kwargs.pop("device", None)
    at_once = not kwargs.pop("non_blocking", False)
    if isinstance(tensor, OnGpu):
        _wait("to the CPU")
        return Tensor.to(tensor.inner, copy=True, **kwargs)
    if at_once:
        _wait("to the GPU")
    elif _current[-1].recording:
        _wait("what the CPU holds")
    return OnGpu(Tensor.to(tensor.detach(), copy=True, **kwargs))


@contextmanager
def _cpu_guards():
    """PyTorch asks somebody to make a GPU the current device; whoever is asked for the CPU does nothing."""
    library = next((Path(torch.__file__).parent / "lib").glob("libc10.*"))
    guards = (ctypes.c_void_p * 2).in_dll(ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[1] = guards[1], guards[0]
    try:
        yield
    finally:
        guards[1] = before
