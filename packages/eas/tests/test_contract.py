"""One test for each line of the contract that can be called here; what is particular stands in the other files."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from eas_fixtures import HOSTS, Prompts, build, skipper
from typer.testing import CliRunner

from eas.commands.app import app

PACKAGE = Path(__file__).parent.parent


def sibling(name):
    """Another test file of this folder; other packages have files of the same names."""
    spec = spec_from_file_location(f"eas_{name}", PACKAGE / "tests" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_d01_import_takes_no_torch():
    """Fails if `import eas` or `eas --help` loads torch or transformers."""
    code = "import sys, eas, eas.commands.app; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_d01_public_names_are_there():
    """Fails if a name that the README uses is not one of the package's."""
    import eas

    assert {"Plan", "Skipper", "Search", "SearchResult", "load", "released"} <= set(eas.__all__)
    assert all(getattr(eas, name) is not None for name in eas.__all__)


def test_d01_the_package_names_what_it_needs():
    """Fails if a heavy library becomes a plain dependency, or release wheels cannot name a version."""
    text = (PACKAGE / "pyproject.toml").read_text()
    needed = text.partition("dependencies = [")[2].partition("]\n")[0]
    assert "TENFOLD_PIN" in text and 'eas = "eas.commands.app:main"' in text
    assert all(heavy not in needed for heavy in ("torchvision", "wandb", "peft", "accelerate", "deepspeed"))


def test_d02_every_golden_case_is_known():
    """Fails if a golden case of the package's own has no computation."""
    from eas.evidence.parity import COMPUTATIONS
    from tenfold.ledger.goldens import find_cases

    known = {json.loads(path.read_text())["computation"] for path in find_cases(PACKAGE / "tests" / "goldens")}
    assert known <= set(COMPUTATIONS) and len(known) == 5


def test_d03_both_official_hosts_are_compared_key_by_key():
    """Fails if one of the LLaVA hosts of the official keys is left out of the comparison."""
    marks = sibling("test_checkpoints").test_full_size_names_and_shapes_are_the_official_ones.pytestmark
    official = json.loads((PACKAGE / "tests" / "goldens" / "official_keys.json").read_text())
    llava = {name for name in official if name in ("vicuna_7b_sqa", "llava15_7b_aid_slake")}
    assert {name for name in marks[0].args[1]} == llava and len(llava) == 2


def test_d04_the_papers_configs_ship_by_name():
    """Fails if one of the three tasks of the LLaVA host, or the laptop's config, is not shipped."""
    names = {path.stem for path in (PACKAGE / "configs").glob("*.yaml")}
    assert names == {"mini", "scienceqa-vicuna-7b", "aid20", "aid50", "slake"}


def test_d05_help_prints_the_trees_of_the_benchmarks():
    """Fails if `eval --help` does not say which files a benchmark consists of."""
    told = CliRunner().invoke(app, ["eval", "--help"]).output
    assert all(name in told for name in ("problems.json", "pid_splits.json", "test20", "test_llava_en", "imgs/"))


def test_d06_the_matrix_has_every_family():
    """Fails if a host that DESIGN requires is not among those that all of test_properties and test_matrix run on."""
    assert len(HOSTS) == 8 and len(sibling("test_matrix").CELLS) == 16


def test_d07_the_rules_stand_before_the_record():
    """Fails if gates, seeds or the least effect of the miniature are not said where they are judged."""
    from eas.evidence import findings

    told = (PACKAGE / "claims.yaml").read_text() + findings.__doc__
    assert "no verdict" in told and "Gate" in told and findings.LEAST == 2.0


def test_d08_every_table_that_can_be_counted_is():
    """Fails if fewer numbers are recomputed than the sheet has: parameters, MACs, folding, bounds."""
    from eas.evidence.claims import PARITY, checks

    assert len(set(checks()) - set(PARITY)) >= 38


def test_d13_the_rehearsal_runs_small(tmp_path, monkeypatch):
    """Fails if a step of the full-size rehearsal does not follow from the one before: here at a 64th of the width."""
    from eas import costs
    from eas.evidence import rehearsal

    monkeypatch.setattr(costs, "LLAMA_7B", costs.Shape(64, 96, 4, len(rehearsal.mini_host.tokenizer()), 4, 4))
    monkeypatch.setattr(rehearsal, "TOWER", {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2})
    found = rehearsal.walk(tmp_path, 4, 1)
    assert [step["step"] for step in found["steps"]][-1] == "answer 1 AID records" and not list(tmp_path.iterdir())
    assert found["skipped"] == [2, 3] and found["prompt_tokens"] > 576 and 0 <= found["scores"]["accuracy"] <= 100
    assert found["dropped_parameters"] == 2 * 4 * 64 * 64


def test_d09_no_square_map_of_attention():
    """Fails if a block makes a tensor of tokens x tokens beside the host's own attention."""
    from torch.utils._python_dispatch import TorchDispatchMode

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


def test_d09_a_decoding_step_asks_the_device_nothing():
    """Fails if a step with a dynamic cache reads a number back: no item, no bool, no tolist of a tensor."""
    waits = []
    model = build("llava")
    inputs = Prompts("llava").batch([[("image", 4), 6]], "left")
    names = ("item", "tolist", "__bool__", "__int__", "__float__")
    kept = {name: getattr(torch.Tensor, name) for name in names}

    def counting(name):
        def wait(self, *args, **kwargs):
            import traceback

            if any("/eas/src/eas/" in frame.filename for frame in traceback.extract_stack()[-4:-1]):
                waits.append(name)
            return kept[name](self, *args, **kwargs)

        return wait

    with torch.no_grad(), skipper((0, 2))(model):
        cache = model(**inputs, use_cache=True).past_key_values
        for name in names:
            setattr(torch.Tensor, name, counting(name))
        try:
            model(input_ids=torch.tensor([[11]]), past_key_values=cache, use_cache=True)
        finally:
            for name in names:
                setattr(torch.Tensor, name, kept[name])
    assert waits == []


def test_d10_a_folder_that_is_none_is_refused_by_every_verb(tmp_path):
    """Fails if a verb meets a wrong path with a traceback."""
    for command in (["verify", "/nowhere"], ["cite", "/nowhere"], ["eval", "--adapters", "/nowhere"]):
        outcome = CliRunner().invoke(app, command)
        assert type(outcome.exception).__name__ == "UserError", command


def test_d12_paper_and_software_are_cited():
    """Fails if BibTeX of the paper or of the software is missing."""
    outcome = CliRunner().invoke(app, ["cite"])
    assert outcome.exit_code == 0 and "2403.15226" in outcome.output and "Qiong" in outcome.output
