"""D9: on a device that is not the CPU the main path gives the same result, and its waits are counted."""

import torch
from gamma_mod_fixtures import converted, prompts
from transformers import DynamicCache

from tenfold.testing.device import stand_in_cuda
from tenfold.testing.processes import apart


@apart
def test_the_main_path_on_the_stand_in_device():
    """The same logits; one wait a converted layer for a prompt and for a step, none in a step that may not skip.

    Fails if a tensor stays on the CPU, or if the host asks for anything else. (Rows of a batch that differ in length
    cost copies of their lengths to the device besides.)
    """
    inputs = prompts(rows=[[("image", 4), 6]])
    model = converted(prefill_threshold=0.5)
    with torch.no_grad():
        expected = model(**inputs, past_key_values=DynamicCache(config=model.config)).logits
    step = {"input_ids": torch.full((1, 1), 20)}
    step["attention_mask"] = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
    with torch.no_grad(), stand_in_cuda() as device:
        model.to("cuda")
        on_device = {name: tensor.to("cuda") for name, tensor in inputs.items()}
        cache = DynamicCache(config=model.config)
        found = model(**on_device, past_key_values=cache).logits
        # Fused attention is another kernel there: 1e-5.
        assert torch.allclose(device.values(found), expected, atol=1e-4)
        prompt = sum(device.waits_in("gamma_mod/").values())
        model(**{name: tensor.to("cuda") for name, tensor in step.items()}, past_key_values=cache)
        one_step = sum(device.waits_in("gamma_mod/").values()) - prompt
        model.gamma_mod.configure(decode_skip=False)
        step["attention_mask"] = torch.ones(1, inputs["input_ids"].shape[1] + 2, dtype=torch.long)
        model(**{name: tensor.to("cuda") for name, tensor in step.items()}, past_key_values=cache)
        free_step = sum(device.waits_in("gamma_mod/").values()) - prompt - one_step
    # A prompt: one a converted layer, and one to see whether anything is padded.
    assert (prompt, one_step, free_step) == (3, 2, 0)
