"""The stand-in for cuda:0: values as on the CPU, no mixing of devices, every wait counted where it happens."""

import pytest
import torch

from tenfold.testing.device import CUDA, DeviceTensor, stand_in_cuda
from tenfold.testing.processes import apart


@apart
def test_values_are_those_of_the_cpu():
    """Fails if a kernel sees other values, or a result is not on the device."""
    layer, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
    expected = layer(x).detach()
    with stand_in_cuda() as device:
        there = x.to("cuda")
        assert sum(device.waits.values()) == 1  # that copy
        device.waits.clear()
        output = layer.to("cuda")(there)
        assert output.device == CUDA and isinstance(output, DeviceTensor)
        assert torch.equal(device.values(output), expected)
        assert sum(device.waits.values()) == 0, device.waits


@apart
def test_devices_do_not_mix():
    """Fails if a CPU tensor slips into an operation on the device, as a real one refuses."""
    with stand_in_cuda(), pytest.raises(RuntimeError, match="on cuda:0 and on the CPU"):
        torch.ones(2, device="cuda") + torch.ones(2)


@pytest.mark.parametrize(
    ("what", "work"),
    [
        ("local_scalar_dense", lambda x: x.sum().item()),
        ("tolist", lambda x: x.tolist()),
        ("nonzero", lambda x: x.nonzero()),
        ("boolean index", lambda x: x[x > 0]),
        ("to the CPU", lambda x: x.cpu()),
        ("is_nonzero", lambda x: bool((x > 0).all())),
    ],
)
@apart
def test_every_wait_is_counted(what, work):
    """Fails if the host can learn a value without a count."""
    with stand_in_cuda() as device:
        work(torch.tensor([1.0, 0.0, 2.0], device="cuda"))
        assert any(place.startswith((what, "local_scalar_dense")) for place in device.waits), device.waits


@apart
def test_copies_to_the_device_wait_unless_they_are_queued():
    """Fails if a copy from pageable memory passes for one that does not block."""
    with stand_in_cuda() as device:
        torch.tensor([1, 2], pin_memory=True).to("cuda", non_blocking=True)
        assert sum(device.waits.values()) == 0, device.waits
        for copy in (
            lambda: torch.tensor([1, 2]).to("cuda", non_blocking=True),
            lambda: torch.tensor([1, 2], pin_memory=True).to("cuda"),
            lambda: torch.tensor([1, 2], device="cuda"),
        ):
            device.waits.clear()
            copy()
            assert sum(device.waits.values()) == 1, device.waits


@apart
def test_the_machine_is_as_before():
    with stand_in_cuda():
        assert torch.cuda.is_available()
    assert torch.tensor(1.0).device.type == "cpu" and torch.cuda.is_available() == bool(torch.cuda.device_count())
