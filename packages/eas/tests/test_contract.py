"""The definition of done, line by line, as far as a test can call it; what is particular stays in files of its own."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from eas_fixtures import HOSTS, Prompts, build, skipper
from torch.utils._python_dispatch import TorchDispatchMode

import eas
from eas import costs
from eas.commands.app import main
from eas.evidence import findings, rehearsal
from eas.evidence.parity import COMPUTATIONS, TOLERANCES
from tenfold.runs.rehearsal import Steps
from tenfold.testing import commands, goldens, ledger, properties

PACKAGE = Path(__file__).parent.parent


def test_d01_import_help_and_cite_load_nothing_heavy():
    """Fails if a public name is missing or imported before it is needed, or a heavy library is a plain dependency."""
    told = commands.answers_without("eas", ("torch", "transformers", "matplotlib"), ("train", "search", "tune"))
    assert "2403.15226" in told and "Qiong" in told
    assert {"Plan", "Skipper", "Search", "SearchResult", "load", "released"} <= set(eas.__all__)
    assert all(getattr(eas, name) is not None for name in eas.__all__)
    text = (PACKAGE / "pyproject.toml").read_text()
    needed = text.partition("dependencies = [")[2].partition("]\n")[0]
    assert "TENFOLD_PIN" in text and 'eas = "eas.commands.app:main"' in text
    assert all(heavy not in needed for heavy in ("torchvision", "wandb", "peft", "accelerate", "deepspeed"))


def test_d02_the_golden_cases_notice_one_number_a_hair_off_and_one_layer(tmp_path):
    """Fails if a tolerance is widened, or an empty folder passes."""
    numbers = {("pia_units", "out/pia_router"): "router", ("search_llava", "out/final_skip"): "what goes"}
    goldens.one_number_counts("eas", COMPUTATIONS, TOLERANCES, tmp_path, numbers)


def test_d03_official_names_are_the_models():
    """At full size, on the meta device. Fails if a name or a shape is mapped otherwise."""
    ledger.official_names_are_the_models("eas")


def test_d04_the_papers_configs_ship_by_name():
    """Fails if a task of one of the three hosts, or the laptop's config, is not shipped."""
    names = {path.stem for path in (PACKAGE / "configs").glob("*.yaml")}
    hosts = {"lavin-scienceqa-7b", "lavin-scienceqa-13b", "meter-vqav2", "meter-nlvr2", "meter-flickr30k"}
    assert names == {"mini", "scienceqa-vicuna-7b", "aid20", "aid50", "slake"} | hosts


def test_d05_help_prints_the_trees_of_the_benchmarks():
    """Fails if `eval --help` does not say which files a benchmark consists of."""
    told = commands.run(main, "eval", "--help").out
    assert all(name in told for name in ("problems.json", "pid_splits.json", "test20", "test_llava_en", "imgs/"))
    assert all(name in told for name in ("mscoco", "nlvr2/data", "dataset_flickr30k.json"))
    commands.answers_without("eas", ("torch", "transformers"), ("eval",))


def test_d06_the_matrix_has_every_family():
    """Fails if a host is not among those that all of test_properties and test_matrix run on."""
    spec = spec_from_file_location("eas_test_matrix", PACKAGE / "tests" / "test_matrix.py")
    spec.loader.exec_module(matrix := module_from_spec(spec))
    assert len(HOSTS) == 8 and len(matrix.CELLS) == 16


def test_d07_the_rules_stand_before_the_record():
    """Fails if gates, seeds or the least effect of the miniature are not said where they are judged."""
    told = (PACKAGE / "claims.yaml").read_text() + findings.__doc__
    assert "no verdict" in told and "Gate" in told and findings.LEAST == 2.0


def test_d08_what_is_counted_comes_out():
    """Fails if a size, a formula or a bound changes."""
    counted = ("lavin_", "gmacs_", "llava_saved", "trained_", "left_", "removed_parameters", "bound_", "cache_share")
    ledger.counted_claims_hold("eas", *counted, "equal_rank")


def test_d09_no_square_map_of_attention():
    """Fails if a block makes a tensor of tokens x tokens beside the host's own attention."""

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.ndim >= 2 and "attention" not in str(function):
                square = made.shape[-1] == made.shape[-2] == 217
                Largest.found += square and made.is_floating_point()
            return made

    inputs = Prompts("llava").batch([[("image", 4), 198]], "left")
    assert inputs["input_ids"].shape[1] == 217
    with torch.no_grad(), skipper()(model := build("llava")), Largest():
        model(**inputs, use_cache=True)
    assert Largest.found == 0


def test_d09_the_same_on_the_device_and_no_wait_while_decoding():
    """Fails if an index stays on the CPU, or a decoding step of ours asks the device for a value."""
    inputs = Prompts("llava").batch([[("image", 4), 6]], "left")
    properties.generates_alike(lambda: build("llava"), inputs, "eas/", waits=0, attach=skipper((0, 2)))


def test_d10_one_line_and_exit_code_2(tmp_path):
    """Fails if there is a traceback, a second line, or a file left behind."""
    refusals = {
        "verify nowhere": "nowhere",
        "cite nowhere": "nowhere",
        "eval --adapters nowhere": "nowhere",
        "train --config nonsense --output new": "no such config",
        "bench --device cuda": "CUDA",
    }
    commands.all_refused(main, tmp_path, refusals)


def test_d11_readme_citation_and_ledger_are_whole():
    """Fails if a section, an author, a check, a verb or an option that README or ledger name is not there."""
    ledger.reads_well("eas", authors=5)


def test_d13_the_rehearsal_runs_small(tmp_path, monkeypatch):
    """Fails if a step of the full-size rehearsal does not follow from the one before: here at a 64th of the width."""
    monkeypatch.setattr(costs, "LLAMA_7B", costs.Shape(64, 96, 4, len(rehearsal.mini_host.tokenizer()), 4, 4))
    monkeypatch.setattr(rehearsal, "TOWER", {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2})
    found = rehearsal.walk(tmp_path, steps := Steps(), 4, 1)
    assert [step["step"] for step in steps.rows][-1] == "answer 1 AID records"
    assert found["skipped"] == [2, 3] and found["prompt_tokens"] > 576 and 0 <= found["scores"]["accuracy"] <= 100
    assert found["dropped_parameters"] == 2 * 4 * 64 * 64
