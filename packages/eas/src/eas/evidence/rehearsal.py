"""A rehearsal at full width: from an official checkpoint of random weights to an evaluated sample, every step timed.

    python benchmarks/rehearse.py eas --output rehearsal.json      # or: python -m eas.evidence.rehearsal

Writes a LLaVA-EAS checkpoint in the official layout and a frozen host in transformers' layout, converts, loads in
bfloat16, drops the skipped attentions, and answers AID records from a file in the official format. 32 layers take 28 GB
of disk and more than 14 GB of memory; fewer layers keep every width.
"""

# Annotations are not deferred: typer evaluates them.

import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from eas import costs
from eas.checkpoints import keys
from eas.checkpoints.convert import convert
from eas.checkpoints.folder import weights_of
from eas.checkpoints.load import open_adapters
from eas.data.records import Record, read_records, write_records
from eas.data.samples import Encoder
from eas.evaluation import scores
from eas.evaluation.answers import answer
from eas.plan import Plan
from eas.skipper import Skipper
from tenfold import UserError
from tenfold.cli import main as run_app
from tenfold.cli.settings import HostSettings
from tenfold.data import mini_host
from tenfold.hosts.loading import load_host
from tenfold.random_weights import random_weights
from tenfold.runs.rehearsal import Steps, rehearsed
from tenfold.weights import StoredTensor, write_weights

TOWER: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
FULL_LAYERS = 32
app = typer.Typer(add_completion=False)


def host_config(layers: int) -> LlavaConfig:
    """LLaVA-1.5-7B's, of so many layers."""
    shape, token = costs.LLAMA_7B, int(mini_host.tokenizer().vocab["<image>"])
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(num_attention_heads=16, image_size=336, patch_size=14, projection_dim=768, **TOWER)
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=token, image_seq_length=576)


def write_host(folder: Path, layers: int) -> None:
    """A frozen host of random weights, with a processor of the real sizes and the mini host's words."""
    config = host_config(layers)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    folder.mkdir(parents=True)
    write_weights(folder, random_weights({name: value.shape for name, value in model.state_dict().items()}))
    config.dtype, config.architectures = torch.bfloat16, ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    size = {"height": 336, "width": 336}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=size),
        tokenizer=mini_host.tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=mini_host.CHAT_TEMPLATE,
    ).save_pretrained(folder)


def write_release(folder: Path, layers: int) -> Plan:
    """A LLaVA-EAS checkpoint of random weights in the official layout: language model, projector, adapters."""
    removed = max(1, round(12 / 32 * layers))
    plan = Plan(layers=layers, skip=tuple(range(layers - removed, layers)), adapter_rank=128, pia_rank=128)
    skipper = Skipper(plan)
    skipper.build(costs.LLAMA_7B.width, dtype=torch.bfloat16)
    width = costs.LLAMA_7B.width
    for name, shape in (("linear_1", (width, TOWER["hidden_size"])), ("linear_2", (width, width))):
        skipper.projector[f"{name}.weight"] = torch.nn.Parameter(torch.randn(shape).bfloat16() * 0.02)
        skipper.projector[f"{name}.bias"] = torch.nn.Parameter(torch.zeros(shape[:1]).bfloat16())
    own = {name: StoredTensor.of(value) for name, value in keys.tensors_to_official(weights_of(skipper)).items()}
    with torch.device("meta"):
        language = LlavaForConditionalGeneration(host_config(layers)).model.language_model
    kept = {
        f"model.{name}": value.shape
        for name, value in language.state_dict().items()
        if not (".self_attn." in name and int(name.split(".")[1]) in plan.skip)
    }
    own |= random_weights(kept)
    folder.mkdir(parents=True)
    write_weights(folder, own)
    return plan


def write_records_of_aid(folder: Path, count: int) -> None:
    """Records in the official form, with pictures of AID's size."""
    records = []
    for number in range(count):
        file = folder / "images" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (600, 600), (40 * number % 255, 120, 80)).save(file)
        text = "What is the label for this image?\nAnswer the question using a single word."
        records.append(Record(str(number), text, "square", file, "CLOSED"))
    write_records(folder / "test20.json", records, folder / "images")


def walk(work: Path, steps: Steps, layers: int, samples: int) -> dict[str, Any]:
    """All steps in a folder; what the record says beside them."""
    plan = steps.do("write a checkpoint in the official layout", lambda: write_release(work / "release", layers))
    made = steps.do("convert", lambda: convert(work / "release", work / "adapters"))
    if made.plan != plan:
        raise UserError("another plan came back", work / "adapters", str(plan))
    shutil.rmtree(work / "release")
    steps.do("write a frozen host in transformers' layout", lambda: write_host(work / "host", layers))
    settings = HostSettings(model=str(work / "host"), device="cpu", dtype="bfloat16")
    host = steps.do("load the host", lambda: load_host(settings))
    skipper, _ = steps.do("attach the adapters", lambda: open_adapters(work / "adapters", host.model))
    gone = steps.do("drop the skipped attentions", skipper.drop_attention)
    write_records_of_aid(work / "aid", samples)
    records = read_records(work / "aid" / "test20.json", work / "aid" / "images")
    encoder = Encoder(host.processor)
    said = steps.do(f"answer {samples} AID records", lambda: answer(host.model, encoder, records, max_new_tokens=4))
    scored = scores.aid(records, {record.id: one.text for record, one in zip(records, said, strict=True)})
    return {
        "layers": layers,
        "full": layers == FULL_LAYERS,
        "skipped": list(plan.skip),
        "dropped_parameters": gone,
        "prompt_tokens": said[0].prompt_tokens,
        "scores": scored,
    }


@app.command()
def rehearsal(
    output: Annotated[Path, typer.Option(metavar="FILE", help="For the record, as JSON.")],
    layers: Annotated[int, typer.Option(help="Of the decoder; every width is the real one.")] = FULL_LAYERS,
    samples: Annotated[int, typer.Option(help="Records that are answered.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="For files in between, 28 GB; default: a temporary one.")] = None,
) -> None:
    """Write, convert, load, skip and answer with LLaVA-EAS, of random weights, at full width."""
    with rehearsed("eas", {"layers": layers, "samples": samples}, output, folder) as (steps, place, metrics):
        metrics |= walk(place, steps, layers, samples)


if __name__ == "__main__":
    run_app(app)
