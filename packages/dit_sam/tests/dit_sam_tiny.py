"""What several tests need: tiny models of every variant, and the command line as a user sees it."""

import os
from pathlib import Path

import torch
from typer.testing import CliRunner

from dit_sam.commands.app import app
from dit_sam.miniature.model import mini_config, mini_vocabulary
from dit_sam.model import DITSam
from tenfold import UserError

ROOT = Path(__file__).parent.parent
VARIANTS = ("layer_wise", "e2e", "cross_attention", "cross_attention_ffn", "default")
# Short trainings on 12 scenes: two epochs of three steps, four sentences each.
SHORT = (
    *("data.mini={train: 12, val: 3, test: 3, size: 48, seed: 9}", "start.point_steps=2", "epochs=2", "steps=3"),
    *("batch=4", "warmup_epochs=0.5", "validation={limit: 6, batch: 4}", "log_steps=1", "checkpoint_steps=2"),
)


def tiny_model(variant="layer_wise", seed=0, **changes):
    """A mini model of random weights, those that start at zero too, so that text matters."""
    torch.manual_seed(seed)
    model = DITSam(mini_config(variant).changed(**changes), mini_vocabulary()).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "probs" in name:
                weight.normal_(std=0.3)
            elif "rel_pos" in name or "pos_embed" in name:
                weight.normal_(std=0.1)
    return model


def run(*arguments):
    """Exit code, what was said, and the one line of a UserError, as `dit-sam` gives them."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if isinstance(result.exception, UserError):
        return 2, result.output, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output, ""


def files_below(folder):
    """Every file's name below a folder."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def environment():
    """For processes of their own."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def rank(number, port, folder, start, queue):
    """One of two ranks of a short training, in a process of its own; tells its mIoU of val."""
    from dit_sam.training.run import run_train
    from dit_sam.training.settings import TrainSettings
    from tenfold.cli import load_config

    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    places = (f"start.model={start}", f"data.folder={folder.parent / 'data'}")
    trained = run_train(load_config(TrainSettings, "mini", (*SHORT, *places)), 0, folder)
    queue.put((number, trained.metrics["val_mIoU"]))
