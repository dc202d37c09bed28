"""What users of FlashSloth and its neighbours asked for, one test a need; a README's sentence may be the thing tested.

Need 12 (several devices) stands in test_tools.py as well, with layers on the disk.
"""

from pathlib import Path
from threading import Thread

import pytest
import torch
from flashsloth_fixtures import END, QUERY, batched, tiny_config, tiny_images, tiny_inputs, tiny_model, turn, words
from flashsloth_releases import write_release
from transformers import TextIteratorStreamer

from flashsloth.checkpoints.load import load
from flashsloth.configuration import FlashSlothConfig
from flashsloth.evidence.claims import fewer_tokens, tokens
from flashsloth.evidence.speed import BenchSettings, run_bench, summary
from flashsloth.miniature.model import mini_processor, new_model
from tenfold.testing.device import stand_in_cuda
from tenfold.testing.processes import apart

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@torch.no_grad()
def test_need_01_samples_with_two_and_three_images_in_one_batch():
    """Batch = single within 1e-4. Fails if one row's patches are another's."""
    model = tiny_model()
    rows = tiny_inputs(model, (2, 3))
    single = torch.cat([model(**row).logits[:, -1] for row in rows])
    assert torch.allclose(model(**batched(rows)).logits[:, -1], single, atol=1e-4)


def test_need_02_a_release_loads_without_siglip(tmp_path):
    """Its tower path names a folder of the authors' machine; no meta tensor is left."""
    model, _ = load(write_release(tmp_path / "FlashSloth-3.2B"))
    assert not any(parameter.is_meta for parameter in model.parameters()) and len(model.state_dict()) > 100


def test_need_03_stage_1_stops_at_its_bound():
    """The warning itself stands in test_checkpoints.py. Fails if weights of stage 1 go on beyond max_new_tokens."""
    model = tiny_model(config=tiny_config(instruction_tuned=False))
    row = tiny_inputs(model)[0]
    made = model.generate(**row, max_new_tokens=3, do_sample=False)
    assert made.shape[1] == row["input_ids"].shape[1] + 3
    assert "stage-1 weights in a chat" in README and "warned once" in README


def test_need_04_why_665k_differs_from_the_table():
    assert "private mixture of 3.7 million samples" in README


def test_need_05_the_eighth_layer_and_the_marker_are_in_the_config():
    """Fails if one becomes a literal again."""
    config = FlashSlothConfig()
    assert (config.embq_layer, config.query_count, config.pool, config.query_token_id) == (7, 9, 3, 50295)
    assert tiny_config(embq_layer=2).embq_layer == 2 and "eighth layer was chosen" in README


def test_need_06_and_07_prefill_decode_tower_and_memory_apart_and_what_is_timed(monkeypatch):
    """Predicted beside measured. Fails if a part is missing, or TTFT is not said."""
    from flashsloth.evidence import speed

    monkeypatch.setattr(speed.FlashSlothConfig, "named", classmethod(lambda cls, name: tiny_config()))
    figures = run_bench(BenchSettings(device="cpu", repeats=1, new_tokens=2), 0)
    assert set(figures) >= {"ttft", "tower", "decode", "ttft_ratio", "dimensions"}
    for part in ("ttft", "tower", "decode"):
        assert {"predicted", "realised", "seconds"} <= figures[part]["flashsloth"].keys()
    assert {"peak_bytes", "cache_bytes", "tokens"} <= figures["ttft"]["uncompressed"].keys()
    assert "no file, no tokenizer" in figures["dimensions"]["ttft"] and "first token" in summary(figures)
    assert {"flashsloth", "uncompressed", "shuffle", "llava-1.5"} == set(figures["ttft"])


def test_need_08_how_tokens_are_counted():
    assert tokens(FlashSlothConfig()).value == 90 and tokens(FlashSlothConfig(views=5)).value == 414
    assert round(fewer_tokens().value, 1) == -88.9 and round(fewer_tokens(True).value, 1) == -87.7


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_need_09_padding_on_either_side(side):
    """The last real position's token is that of the row alone, for questions of 5, 9 and 30 words."""
    model, generator = tiny_model(), torch.Generator().manual_seed(4)
    rows = []
    for number, count in enumerate((5, 9, 30)):
        ids = torch.tensor([turn(model.config, 1, words(count, generator))])
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": tiny_images(1, number)})
    batch = batched(rows, side)
    last = batch["attention_mask"].cumsum(dim=1).argmax(dim=1)
    told = model(**batch).logits[torch.arange(3), last].argmax(dim=-1)
    assert told.tolist() == [model(**row).logits[0, -1].argmax().item() for row in rows]


@torch.no_grad()
def test_need_10_a_second_turn_reads_its_own_question():
    """With kept patches as with the image sent again. Fails if the first question's span serves the second turn."""
    model, generator = tiny_model(), torch.Generator().manual_seed(1)
    first = turn(model.config, 1, words(5, generator))
    second = [*first, 11, END, *turn(model.config, 0, words(6, generator))]
    pixels = tiny_images(1)
    cache = model(input_ids=torch.tensor([first]), pixel_values=pixels, use_cache=True).past_key_values
    kept = model(input_ids=torch.tensor([second[len(first) :]]), past_key_values=cache).logits[:, -1]
    again = model(input_ids=torch.tensor([second]), pixel_values=pixels).logits[:, -1]
    assert torch.allclose(kept, again, atol=1e-4)
    queries = [at for at, token in enumerate(second) if token == QUERY][:: model.config.query_count]
    spans = torch.tensor([[[queries[0] - 5, queries[0]]] * 2])  # the official code's, while answering
    theirs = model(input_ids=torch.tensor([second]), pixel_values=pixels, question_spans=spans).logits[:, -1]
    assert not torch.allclose(theirs, again, atol=1e-4)


@torch.no_grad()
def test_need_11_half_precision_does_not_overflow():
    """Products of queries and keys pass 1e5: SDPA's sums are float32. Fails with scores in float16."""
    model = tiny_model().half()
    for layer in model.model.language_model.layers:
        layer.self_attn.q_proj.weight.mul_(200)
        layer.self_attn.k_proj.weight.mul_(200)
    row = tiny_inputs(model)[0]
    row["pixel_values"] = row["pixel_values"].half()
    assert bool(model(**row).logits.isfinite().all())


@apart
def test_need_12_patches_follow_the_layer():
    """The tower on the CPU, EmbQ and the language model on a stand-in device. Fails if patches stay behind."""
    model, there = tiny_model(), tiny_model()
    row = tiny_inputs(model)[0]
    with torch.no_grad():
        expected = model(**row).logits
        features = model.encode_images(row.pop("pixel_values"))
    with stand_in_cuda() as device, torch.no_grad():
        there.to("cuda")
        output = there(input_ids=row["input_ids"].to("cuda"), image_features=features)
        assert torch.allclose(device.values(output.logits), expected, atol=1e-4)


def test_need_13_a_streamed_answer_is_the_decoded_one():
    model, processor = new_model(0).eval(), mini_processor()
    inputs = processor(text=processor.prompt("What shape is red?", image=False), return_tensors="pt")
    whole = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    thread = Thread(target=lambda: model.generate(**inputs, max_new_tokens=5, do_sample=False, streamer=streamer))
    thread.start()
    text = "".join(streamer)
    thread.join()
    new = whole[0, inputs["input_ids"].shape[1] :]
    assert text.split() == processor.tokenizer.decode(new, skip_special_tokens=True).split()


def test_need_14_lora_with_the_new_modules(tmp_path):
    """Trained one step, saved, loaded: bit-equal. Fails if SAP, EmbQ, queries or projector are not kept."""
    from peft import LoraConfig, PeftModel, get_peft_model

    new = ["pooling", "embq", "query_tokens", "multi_modal_projector"]
    options = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=new)
    model = get_peft_model(tiny_model(), options)
    row = tiny_inputs(model.get_base_model())[0]
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
    model(**row, labels=row["input_ids"].clamp(max=50)).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**row).logits, model.eval()(**row).logits)
        assert not torch.allclose(loaded(**row).logits, tiny_model()(**row).logits, atol=1e-4)


def test_need_15_pixel_shuffle_is_a_baseline():
    assert "pixel-shuffle at 81 tokens" in README
