"""On the stand-in device the main path gives the CPU's result, and waits where it says it does."""

import torch
from dyvte import VisualExit
from dyvte_fixtures import THRESHOLD, host, rows

from tenfold.testing.device import stand_in_cuda
from tenfold.testing.processes import apart


@apart
@torch.no_grad()
def test_prefill_and_decoding_on_the_device_equal_the_cpu_and_wait_once_a_compaction():
    """Fails if a tensor is made on the CPU, if a gate's decision is read in every layer, or if decoding waits.

    Two waits describe the prompt (which rows are padded, how many tokens they have).
    """
    model, gates = host()
    inputs = rows()
    for every, compactions in ((1, 4), (2, 2), (4, 1)):
        exit = VisualExit(gates, threshold=float("inf"), compact_every=every)
        check(model, gates, inputs, exit, compactions)
    exit = VisualExit(gates, THRESHOLD)
    check(model, gates, inputs, exit, None)


def check(model, gates, inputs, exit, compactions):
    step = torch.tensor([[11], [12], [13]])
    mask = torch.cat((inputs["attention_mask"], torch.ones(3, 1, dtype=torch.int64)), dim=1)
    with exit(model):
        output = model(**inputs, use_cache=True)
        decoded = model(input_ids=step, attention_mask=mask, past_key_values=output.past_key_values).logits
        exits = exit.exit_layers()
    with stand_in_cuda() as device:
        model.to("cuda")
        gates.to("cuda")
        with exit(model):
            there = {name: value.to("cuda") for name, value in inputs.items()}
            before = sum(device.waits_in("dyvte/").values())
            found = model(**there, use_cache=True)
            prefill = sum(device.waits_in("dyvte/").values()) - before
            mask_there, step_there = mask.to("cuda"), step.to("cuda")
            before = sum(device.waits_in("dyvte/").values())
            after = model(input_ids=step_there, attention_mask=mask_there, past_key_values=found.past_key_values).logits
            decode = sum(device.waits_in("dyvte/").values()) - before
            assert exit.exit_layers() == exits
        # Attention takes another of torch's implementations on a device.
        torch.testing.assert_close(device.values(found.logits), output.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(device.values(after), decoded, atol=1e-5, rtol=1e-5)
        assert decode == 0
        assert prefill <= (compactions or 4) + 2
        model.to("cpu")
        gates.to("cpu")
