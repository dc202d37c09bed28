"""cuda:0 on a machine without one: tensors that refuse to mix with the CPU's, and a count of every wait for them.

    with stand_in_cuda() as device:
        model.to("cuda")
        output = model(**{name: tensor.to("cuda") for name, tensor in inputs.items()})
        assert torch.equal(device.values(output.logits), expected)      # the CPU's values
        assert device.waits_in("fitprune/") == {}                       # place -> how often the host waited there

Values are kept and computed on the CPU, so results equal the CPU's bit for bit; what is tested is where tensors live,
and where the host asks for a value (``.item()``, ``.tolist()``, ``nonzero``, a boolean index, a copy to the CPU), or
copies to the device without ``non_blocking`` from pinned memory, and so waits for all work that a real device has
queued. It serves forward passes: the autograd engine asks for a real context.
In tests, put `tenfold.testing.processes.apart` around it: a process that had it cannot fork and differentiate later.
Not covered: backward passes, cuDNN, compiled code, the numerics of other kernels.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
# A list of indices may lie on the CPU (it is copied over); a boolean one makes the host wait for its size.
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# The host needs a value, or the size of a result.
ASKING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.is_nonzero.default,
}


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on cuda:0; `inner` holds its values in CPU memory."""

    inner: torch.Tensor  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> DeviceTensor:
        with _disable_current_modes():
            shape = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device="meta")
        tensor = torch.Tensor._make_subclass(
            cls, shape, requires_grad, dispatch_device=True, device_for_backend_keys=CUDA
        )
        tensor.inner = inner
        return tensor

    def tolist(self) -> Any:
        _note("tolist")
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.inner})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class StandIn:
    """What happened on the stand-in.

    Attributes:
        waits: "what place" -> how often; a place is the innermost line of a package, else of a library.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()

    def waits_in(self, *folders: str) -> dict[str, int]:
        """The waits whose place lies in one of these folders, such as "fitprune/"."""
        return {place: count for place, count in self.waits.items() if any(folder in place for folder in folders)}

    @staticmethod
    def values(tensor: torch.Tensor) -> torch.Tensor:
        """A tensor's values, on the CPU."""
        return tensor.inner if isinstance(tensor, DeviceTensor) else tensor

    @staticmethod
    def move(thing: Any) -> Any:
        """Tensors of any nesting, or a module's parameters and buffers in place, to the stand-in."""
        if isinstance(thing, torch.nn.Module):
            for module in thing.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and not isinstance(parameter, DeviceTensor):
                        module._parameters[name] = _parameter(parameter)
                for name, buffer in module._buffers.items():
                    if buffer is not None and not isinstance(buffer, DeviceTensor):
                        module._buffers[name] = DeviceTensor(buffer)
            return thing
        return tree_map(lambda leaf: DeviceTensor(leaf) if _on_cpu(leaf) else leaf, thing)


_current: StandIn | None = None


@contextlib.contextmanager
def stand_in_cuda() -> Iterator[StandIn]:
    """Within the block cuda:0 exists, with one device; no gradients are kept."""
    global _current
    standing = StandIn()
    replaced = {
        (torch.cuda, "_lazy_init"): lambda: None,
        (torch.cuda, "is_available"): lambda: True,
        (torch.cuda, "current_device"): lambda: 0,
        (torch.cuda, "device_count"): lambda: 1,
        (torch.cuda, "synchronize"): lambda device=None: _note("synchronize"),
        (torch.cuda, "set_device"): lambda device: None,
        (torch.cuda, "is_bf16_supported"): lambda *_, **__: True,
        (torch, "Generator"): _Generator,
        (torch, "tensor"): _made(torch.tensor),
        (torch, "as_tensor"): _made(torch.as_tensor),
        (torch.nn.Module, "to"): _module_to(torch.nn.Module.to),
        (torch.nn.Module, "cuda"): lambda module, device=None: standing.move(module),
    }
    saved = {(place, name): getattr(place, name) for place, name in replaced}
    torch._C._ensureCUDADeviceGuardSet()
    _current = standing
    try:
        for (place, name), new in replaced.items():
            setattr(place, name, new)
        with torch.no_grad(), _Mode(), torch.backends.cudnn.flags(enabled=False):
            yield standing
    finally:
        _current = None
        for (place, name), old in saved.items():
            setattr(place, name, old)


class _Generator(torch.Generator):
    """Draws of a CUDA generator come from the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return torch._C.Generator.__new__(torch._C.Generator, device="cpu")  # type: ignore[call-arg]


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return CUDA if isinstance(args[0], DeviceTensor) else args[0].device
    if func is aten._fused_sdp_choice.default:
        return 0  # the mathematical form: the fused CUDA kernels have no twin on the CPU
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    on_device = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    target = asked or (CUDA if on_device else torch.device("cpu"))
    if on_device:
        _check(func, tensors, asked)
    elif func is aten._to_copy.default and target.type == "cuda" and not _queued(kwargs, tensors):
        _note("to the device")
    inner_args, inner_kwargs = tree_map(StandIn.values, args), tree_map(StandIn.values, kwargs)
    if asked is not None and asked.type != "meta":
        inner_kwargs["device"] = torch.device("cpu")
    if "pin_memory" in inner_kwargs:
        inner_kwargs["pin_memory"] = False
    result = func(*inner_args, **inner_kwargs)
    if target.type != "cuda":
        return result
    if func._schema.is_mutable and args and isinstance(args[0], DeviceTensor) and result is args[0].inner:
        return args[0]
    return tree_map(lambda leaf: DeviceTensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)


def _queued(options: dict[str, Any], tensors: list[torch.Tensor]) -> bool:
    """Whether a copy to the device does not make the host wait."""
    return bool(options.get("non_blocking")) and getattr(tensors[0], "pinned", False)


def _check(func: Any, tensors: list[torch.Tensor], asked: torch.device | None) -> None:
    copies = func in (aten._to_copy.default, aten.copy_.default)
    for tensor in tensors if not copies else ():
        if _on_cpu(tensor) and tensor.dim():
            if func not in INDEXED:
                raise RuntimeError(f"{func}: tensors on cuda:0 and on the CPU, at {_place()}")
            _note("index from the CPU")
    if func in ASKING:
        _note(func.__name__.partition(".")[0].strip("_"))
    if func in INDEXED and any(tensor.dtype == torch.bool for tensor in tensors[1:]):
        _note("boolean index")
    if func is aten._to_copy.default and asked is not None and asked.type == "cpu":
        _note("to the CPU")
    if func is aten.copy_.default and len({isinstance(tensor, DeviceTensor) for tensor in tensors}) == 2:
        _note("copy across")


def _on_cpu(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and not isinstance(leaf, DeviceTensor) and leaf.device.type == "cpu"


def _parameter(parameter: torch.nn.Parameter) -> Any:
    moved = DeviceTensor(parameter.data)
    moved._is_param = True
    return moved


def _made(make: Any) -> Any:
    def call(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        pinned = bool(kwargs.pop("pin_memory", False))
        if device is None or torch.device(device).type != "cuda":
            made = make(data, *args, device=device, **kwargs)
            made.pinned = pinned
            return made
        if isinstance(data, torch.Tensor):
            return make(data, *args, **kwargs).to(CUDA)
        _note("host values to the device")
        return DeviceTensor(make(data, *args, **kwargs))

    return call


def _module_to(to: Any) -> Any:
    def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type != "cuda":
            return to(module, *args, **kwargs)
        return StandIn.move(module if dtype is None else to(module, dtype=dtype))

    return call


def _note(what: str) -> None:
    if _current is not None:
        _current.waits[f"{what} {_place()}"] += 1


def _place() -> str:
    """The innermost line of a package on the stack, else of transformers or diffusers."""
    for frame in reversed(traceback.extract_stack()):
        name = frame.filename.replace("\\", "/")
        if name == __file__:
            continue
        for mark in ("/src/", "site-packages/transformers", "site-packages/diffusers"):
            if mark in name and (mark != "/src/" or "site-packages" not in name):
                return f"{name.split('site-packages/')[-1].split('/src/')[-1]}:{frame.lineno}"
    return "?"
