"""What holds for every model: inputs stay as they are; a device gives what the CPU gives, and is asked little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tenfold.testing.device import StandIn, stand_in_cuda
from tenfold.testing.processes import apart


@contextmanager
def unchanged(inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block nothing writes into these tensors."""
    kept = {name: value.clone() for name, value in inputs.items()}
    yield
    changed = [name for name, value in inputs.items() if not torch.equal(value, kept[name])]
    assert not changed, f"changed in place: {changed}"


def alone(inputs: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row of a padded batch without its padding; what is not per token, such as an image, is the row's own."""
    mask = inputs["attention_mask"][row].bool()
    tokens = inputs["input_ids"].shape
    return {name: part[[row]][:, mask] if part.shape == tokens else part[[row]] for name, part in inputs.items()}


@apart
@torch.no_grad()
def alike_there(
    build: Callable[[], Any],
    call: Callable[[Any, Any], Any],
    inputs: Any,
    *,
    waits: Mapping[str, int],
    warm: bool = False,
) -> None:
    """A call gives on the stand-in device what it gives on the CPU; in a process of its own.

    Args:
        build: makes the model (or pipeline), on the CPU, the same one each time.
        call: (model, inputs) -> tensors, nested at will.
        inputs: tensors, nested at will.
        waits: how often the host waits there, by what a wait's name begins with (see `StandIn`); "" are all of them.
        warm: the call that counts is the second one there.
    """
    expected, there = call(build(), inputs), build()
    with stand_in_cuda() as device:
        there.to("cuda")
        inputs = device.move(inputs)
        if warm:
            call(there, inputs)
            device.waits.clear()
        found = tree_map(device.values, call(there, inputs))
        seen = device.waits.copy()
    counted = {name: sum(seen[place] for place in seen if place.startswith(name)) for name in waits}
    assert counted == dict(waits), seen
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@apart
@torch.no_grad()
def generates_alike(
    build: Callable[[], nn.Module],
    inputs: Mapping[str, Tensor],
    *folders: str,
    waits: int,
    attach: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """A prompt with a cache, and a step after it, give on the stand-in device what they give on the CPU; apart.

    Args:
        build: makes the model, on the CPU, the same one each time.
        inputs: of the prompt: ``input_ids [batch, tokens]``, ``attention_mask``, what else there is.
        folders: places whose waits count, such as "fitprune/".
        waits: how often the host waits there in the prompt; in the step it never does.
        attach: what the model runs under.
    """
    ids = inputs["input_ids"]
    step = torch.full((len(ids), 1), 7)
    mask = torch.cat((inputs["attention_mask"], torch.ones_like(step)), dim=1)

    def run(model: nn.Module, inputs: Mapping[str, Tensor], step: Tensor, mask: Tensor, device: StandIn | None) -> Any:
        counts = []
        with attach(model):
            output = model(**inputs, use_cache=True)
            counts.append(sum(device.waits_in(*folders).values()) if device else waits)
            after = model(input_ids=step, attention_mask=mask, past_key_values=output.past_key_values).logits
            counts.append(sum(device.waits_in(*folders).values()) if device else waits)
        assert counts == [waits, waits], (counts, device and device.waits)
        return output.logits, after

    expected = run(build(), inputs, step, mask, None)
    there = build()
    with stand_in_cuda() as device:
        there.to("cuda")
        moved, step, mask = device.move((dict(inputs), step, mask))
        found = run(there, moved, step, mask, device)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(device.values(ours), theirs, atol=1e-5, rtol=1e-4)
