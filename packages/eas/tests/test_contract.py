"""One test for each line of the contract that can be called here; what is particular stands in the other files."""

import subprocess
import sys

import torch
from eas_fixtures import Prompts, build, skipper
from typer.testing import CliRunner

from eas.commands.app import app


def test_d1_import_takes_no_torch():
    """Fails if `import eas` or `eas --help` loads torch or transformers."""
    code = "import sys, eas, eas.commands.app; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_d1_public_names_are_there():
    """Fails if a name that the README uses is not one of the package's."""
    import eas

    assert {"Plan", "Skipper", "Search", "SearchResult", "load", "released"} <= set(eas.__all__)
    assert all(getattr(eas, name) is not None for name in eas.__all__)


def test_d9_no_square_map_of_attention():
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


def test_d9_a_decoding_step_asks_the_device_nothing():
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
