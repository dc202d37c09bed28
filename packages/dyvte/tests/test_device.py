"""On the stand-in device the main path gives the CPU's result, and waits where it says it does."""

import copy

import pytest
import torch
from dyvte_fixtures import THRESHOLD, host, rows

from dyvte import VisualExit
from tenfold.testing.device import stand_in_cuda
from tenfold.testing.processes import apart


@pytest.mark.parametrize(
    ("threshold", "every", "compactions"), [(float("inf"), 1, 4), (float("inf"), 2, 2), (THRESHOLD, 1, 4)]
)
@apart
@torch.no_grad()
def test_prefill_and_decoding_on_the_device_equal_the_cpu_and_wait_once_a_compaction(threshold, every, compactions):
    """Fails if a tensor is made on the CPU, if a gate's decision is read in every layer, or if decoding waits.

    Two waits describe the prompt (which rows are padded, how many tokens they have).
    """
    model, gates = host()
    inputs, step = rows(), torch.tensor([[11], [12], [13]])
    mask = torch.cat((inputs["attention_mask"], torch.ones(3, 1, dtype=torch.int64)), dim=1)
    with VisualExit(gates, threshold, compact_every=every)(model) as exit:
        prefill = model(**inputs, use_cache=True)
        decoded = model(input_ids=step, attention_mask=mask, past_key_values=prefill.past_key_values).logits
        exits = exit.exit_layers()
    model, gates = copy.deepcopy(model), copy.deepcopy(gates)
    with stand_in_cuda() as device:
        model.to("cuda")
        gates.to("cuda")
        there = {name: value.to("cuda") for name, value in inputs.items()}
        step_there, mask_there = step.to("cuda"), mask.to("cuda")
        with VisualExit(gates, threshold, compact_every=every)(model) as exit:
            found = model(**there, use_cache=True)
            waited = sum(device.waits_in("dyvte/").values())
            after = model(input_ids=step_there, attention_mask=mask_there, past_key_values=found.past_key_values).logits
            assert sum(device.waits_in("dyvte/").values()) == waited
            assert exit.exit_layers() == exits
        assert waited <= compactions + 2
        # Attention takes another of torch's implementations on a device.
        torch.testing.assert_close(device.values(found.logits), prefill.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(device.values(after), decoded, atol=1e-5, rtol=1e-5)
