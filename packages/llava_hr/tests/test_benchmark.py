"""The benchmark: that it measures what it says, at dimensions small enough for a test."""

import io
import json

import pytest
import torch
import typer
from llava_hr_fixtures import tiny_config, tiny_images, tiny_model
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from llava_hr import bench_towers, costs
from llava_hr.commands import bench as bench_verb
from llava_hr.commands.tables import bench_tables
from llava_hr.configuration import LlavaHrConfig
from llava_hr.evidence import speed
from llava_hr.evidence.settings import BenchSettings
from llava_hr.evidence.speed import Bench, llava_config, reduced_config, run_bench
from tenfold import UserError
from tenfold.cli.settings import checked
from tenfold.runs import RunRecord
from tenfold.runs.clock import Clock

SETTINGS = BenchSettings(
    device="cpu",
    image_size=64,
    llava_sizes=(56, 42),
    text_tokens=8,
    new_tokens=4,
    repeats=2,
    generate=True,
    overlap=True,
)
HR, EQUAL, SMALL = "LLaVA-HR 64 px", "LLaVA-1.5 56 px", "LLaVA-1.5 42 px"
PARTS = ("vision", "prefill", "decode", "answer", "generate")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    return run_bench(SETTINGS, 0, file, tiny_config()), file


@pytest.fixture(scope="module")
def bench():
    return Bench(
        SETTINGS, reduced_config(tiny_config(), SETTINGS, torch.device("cpu")), torch.float32, torch.device("cpu"), 0
    )


def test_every_model_is_measured_in_every_part(measured):
    """Fails if a model or a part is left out, or a ratio is not what it is called."""
    figures, _ = measured
    for part in PARTS:
        assert figures[part].keys() == {HR, EQUAL, SMALL}
        for row in figures[part].values():
            assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]
            assert row["realised_over_predicted"] == pytest.approx(row["realised"] / row["predicted"])
        assert figures[part][EQUAL]["realised"] == figures[part][EQUAL]["predicted"] == 1
        base, ours = figures[part][EQUAL], figures[part][HR]
        cost = "bytes" if part == "decode" else "flops"
        assert ours["realised"] == pytest.approx(base["seconds"] / ours["seconds"])
        assert ours["predicted"] == pytest.approx(base[cost] / ours[cost])
    row = figures["answer"][HR]
    assert row["tokens_per_second"] == pytest.approx(4 / row["seconds"])


def test_an_answer_is_the_sum_of_its_parts(bench):
    """The official speed script's composite. Fails if a step of decoding is lost, or counted twice."""
    once, _ = bench._once(bench.subjects[0])
    assert once["answer"] == pytest.approx(once["vision"] + once["prefill"] + 3 * once["decode"])


def test_what_is_predicted_is_what_runs(bench):
    """Fails if a FLOP of vision or prefill that torch sees is not in the prediction, or the other way round."""
    for subject in bench.subjects:
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as vision:
                visual = subject.encode(subject.pixels)
            with FlopCounterMode(display=False) as prefill:
                output = subject.prefill(visual)
        assert visual.shape == (1, subject.tokens, 24)
        assert vision.get_total_flops() == bench._cost("vision", subject)
        assert prefill.get_total_flops() == bench._cost("prefill", subject)
        assert output.logits.shape == (1, 1, 60)
        assert output.past_key_values.get_seq_length() == subject.tokens + 8


def test_the_cost_of_an_answer_has_every_step(bench):
    """Fails if the tokens after the first are left out, or their caches do not grow."""
    subject = bench.subjects[0]
    decoder = subject.shape.decoder
    steps = sum(costs.decode_macs(decoder, 4 + 8 + step) for step in (1, 2, 3))
    head = 24 * 60
    expected = 2 * (costs.prefill(subject.shape, 64, 8).total + steps + 4 * head)
    assert bench._cost("answer", subject) == expected


def test_all_models_share_one_decoder(bench):
    """Fails if a second language model takes memory, or the peak of one model counts another's encoder."""
    assert len({id(subject.model.lm_head.weight) for subject in bench.subjects}) == 1
    assert len({id(subject.model.get_decoder().layers[0].mlp.up_proj.weight) for subject in bench.subjects}) == 1
    own = sum(p.numel() for p in bench.subjects[1].model.model.vision_tower.parameters())
    own += sum(p.numel() for p in bench.subjects[1].model.model.multi_modal_projector.parameters())
    small = sum(p.numel() for p in bench.subjects[2].model.model.vision_tower.parameters())
    small += sum(p.numel() for p in bench.subjects[2].model.model.multi_modal_projector.parameters())
    assert bench._bytes_of_others(bench.subjects[0]) == 4 * (own + small)


def test_generate_answers_as_the_parts_do(bench):
    """Fails if `generate` is timed on another prompt, image or length."""
    with torch.inference_mode():
        for subject in bench.subjects:
            output = subject.prefill(subject.encode(subject.pixels))
            ids, cache = [output.logits[:, -1:].argmax(-1)], output.past_key_values
            while len(ids) < 4:
                logits = subject.model(input_ids=ids[-1], past_key_values=cache, use_cache=True).logits
                ids.append(logits[:, -1:].argmax(-1))
            expected = torch.cat(ids, 1)
            found = bench._generate(subject)[:, -4:]
            # The end mark is suppressed by generate, as the script's answers are of one length.
            kept = (expected != 2).cumprod(1).bool()
            assert torch.equal(found[kept], expected[kept]) and kept[0, 0]


def test_kept_visual_tokens_save_the_towers(measured, bench, monkeypatch):
    """Fails if what is timed as kept runs the tower, or what is timed against it does not."""
    runs, timed = [], []
    handle = bench.hr.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))

    def time(work):
        runs.clear()
        result = work()
        timed.append(len(runs))
        return result, 1.0 + len(runs), None

    monkeypatch.setattr(bench.clock, "time", time)
    with torch.inference_mode():
        assert bench._further_question() == {"kept": 1.0, "encoded again": 2.0}
    handle.remove()
    assert timed == [0, 1]
    reuse = measured[0]["further_question"]
    vision, prefill = (measured[0][part][HR]["flops"] for part in ("vision", "prefill"))
    assert reuse["predicted"] == pytest.approx((vision + prefill) / prefill)
    assert reuse["realised"] == pytest.approx(reuse["encoded_again"]["seconds"] / reuse["kept"]["seconds"])
    name = bench.subjects[0].name
    seconds = bench._reuse({"kept": [1.0], "encoded again": [3.0]}, {"decode": {name: [0.5]}})
    assert (seconds["realised"], seconds["answer"]) == (3.0, (3 + 3 * 0.5) / (1 + 3 * 0.5))


@pytest.mark.parametrize("way", [bench_towers.overlapped, bench_towers.projected_once])
def test_faster_ways_through_the_tower_give_the_same(way):
    """Fails if what is measured in place of the tower computes something else."""
    tower, pixels = tiny_model().model.vision_tower, tiny_images(2)
    with torch.no_grad():
        torch.testing.assert_close(way(tower, pixels), tower(pixels), atol=1e-5, rtol=1e-5)


def test_only_the_cpu_is_given_fewer_layers():
    """Fails if the whole model is not measured on CUDA, or a CPU gets all of it."""
    full, settings = LlavaHrConfig.named("7b"), BenchSettings()
    whole = reduced_config(full, settings, torch.device("cuda"))
    assert costs.Shape.of(whole) == costs.NAMED["7b"]
    small = costs.Shape.of(reduced_config(full, settings, torch.device("cpu")))
    assert small == costs.reduced(costs.NAMED["7b"], decoder=2, vit=4, conv=(1, 1, 3, 1))
    asked = BenchSettings(layers=3, vit_layers=8, conv_depths=(2, 2, 2, 2))
    chosen = costs.Shape.of(reduced_config(full, asked, torch.device("cuda")))
    assert (chosen.decoder.layers, chosen.vit.layers, chosen.conv.depths) == (3, 8, (2, 2, 2, 2))
    assert whole.text_config.max_position_embeddings >= 5329 + 60 + 10


def test_llava_reads_the_image_at_full_size():
    config = llava_config(LlavaHrConfig.named("7b"), 1022)
    assert (config.vision_config.image_size, config.vision_config.num_hidden_layers) == (1022, 24)
    with pytest.raises(UserError, match=r"LLaVA-1\.5 at 1024 pixels"):
        llava_config(LlavaHrConfig.named("7b"), 1024)


def test_the_record_holds_the_figures(measured):
    """Fails if the record is not whole, or a setting is not in it."""
    figures, file = measured
    record = RunRecord.load(file)
    assert (record.package, record.verb, record.config) == ("llava_hr", "bench", json.loads(SETTINGS.model_dump_json()))
    assert record.metrics == json.loads(json.dumps(figures))
    facts = record.metrics["dimensions"]
    assert (facts["decoder_layers"], facts["vit_layers"], facts["conv_depths"], facts["full"]) == (
        2,
        4,
        [1, 1, 2, 1],
        False,
    )
    assert record.metrics["models"][EQUAL]["visual_tokens"] == 16


def test_global_randomness_is_left_alone(bench):
    before = torch.random.get_rng_state()
    Bench(SETTINGS, bench.config, torch.float32, torch.device("cpu"), 1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_tables_show_every_figure(measured):
    figures, _ = measured
    screen = Console(width=160, file=io.StringIO())
    screen.print(bench_tables(figures))
    text = screen.file.getvalue()
    for line in ("Vision:", "Prefill:", "Decode, per token", "Answer of 4 tokens", "generate()", "A further question"):
        assert line in text
    assert (
        "Not the whole models: 2 decoder layers of width 24, 4 ViT layers, ConvNeXt of 1/1/2/1 blocks; float32" in text
    )
    assert "Vision tower, two streams" in text and f"{figures['answer'][HR]['tokens_per_second']:.1f}" in text
    whole = figures | {"dimensions": figures["dimensions"] | {"full": True}}
    for row in whole["answer"].values():
        row["peak_bytes"] = 2**31
    screen.print(bench_tables(whole))
    assert "LLaVA-HR-7B and LLaVA-1.5-7B, whole" in screen.file.getvalue()
    assert "2.00 GiB" in screen.file.getvalue()


def test_the_clock_gives_the_result_and_its_seconds():
    result, seconds, peak = Clock(torch.device("cpu")).time(lambda: 7)
    assert result == 7 and 0 <= seconds < 1 and peak is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "tpu"}, "device: 'tpu'"),
        ({"layers": 0}, "layers: 0"),
        ({"vit_layers": 6}, "vit_layers: 6"),
        ({"image_size": 1000}, "image_size: 1000"),
        ({"llava_sizes": ()}, "llava_sizes"),
        ({"conv_depths": (1, 1)}, "conv_depths"),
        ({"dtype": "int8"}, "dtype: 'int8'"),
        ({"color": 1}, "color: 1"),
    ],
)
def test_settings_that_do_not_fit_are_named(values, message):
    with pytest.raises(UserError, match=message):
        checked(BenchSettings, values, "llava-hr bench")


def test_the_command_passes_every_option_on(monkeypatch, measured, tmp_path):
    """Fails if an option is not the setting of its name, or the tables are not shown."""
    app, asked = typer.Typer(), []
    app.command()(bench_verb.bench)
    monkeypatch.setattr(speed, "run_bench", lambda *arguments: asked.append(arguments) or measured[0])
    options = (
        "--device cpu --dtype bfloat16 --layers 1 --vit-layers 8 --conv-depths 1,2,3,4 --image-size 768 --repeats 2"
    )
    options += f" --llava-size 672 --llava-size 448 --overlap --seed 5 --output {tmp_path / 'bench.json'}"
    result = CliRunner().invoke(app, options.split())
    assert result.exit_code == 0 and "Prefill" in result.output, result.output
    settings, seed, output = asked[0]
    assert (seed, output) == (5, tmp_path / "bench.json")
    assert settings == BenchSettings(
        device="cpu",
        dtype="bfloat16",
        layers=1,
        vit_layers=8,
        conv_depths=(1, 2, 3, 4),
        image_size=768,
        llava_sizes=(672, 448),
        repeats=2,
        overlap=True,
    )
    assert isinstance(CliRunner().invoke(app, ["--conv-depths", "1,2,x,4"]).exception, UserError)


def test_a_missing_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no such CUDA device"):
        run_bench(BenchSettings(device="cuda"), 0, None, tiny_config())
