"""The routing report: what is counted, that it can tell a router from a fixed mixture, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dtnet_mini import write_untrained
from dtnet_models import tiny_features, tiny_model
from PIL import Image
from rich.console import Console

from dtnet.cells import build_cell
from dtnet.commands.tables import routing_tables
from dtnet.config import DTNetConfig
from dtnet.data.grid_features import write_grid_features
from dtnet.data.mini import write_mini_coco
from dtnet.evaluation import demo
from dtnet.evaluation.analysis import (
    caption_loss,
    cell_rows,
    collect_paths,
    kind_variance,
    mean_paths,
    memory_change,
    other_paths,
    passed_counts,
    report,
    router_units,
    swap_test,
)
from dtnet.evaluation.analysis_run import AnalyzeSettings, run_analyze
from dtnet.evidence import claims
from dtnet.model import DTNet
from dtnet.router import Paths
from tenfold import UserError
from tenfold.runs import RunRecord, read_json

# Two images, one layer.
PATHS = Paths(
    torch.tensor([[[0.2, 0.3, 0.5]], [[0.4, 0.3, 0.3]]]),
    torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]),
)
ONE_LAYER = DTNetConfig(encoder_layers=1)


def captions_of(model: DTNet, images: int) -> list[list[list[int]]]:
    """Two captions an image, of different lengths."""
    generator = torch.Generator().manual_seed(3)
    return [
        [[2, *torch.randint(4, 20, (length + image % 2,), generator=generator).tolist(), 3] for length in (2, 5)]
        for image in range(images)
    ]


def test_a_cell_is_passed_from_one_over_the_cells_that_share_the_weight() -> None:
    """Fails if the five cells share one threshold, or a weight of exactly 1 / P does not pass."""
    rows = {row["cell"]: row for row in cell_rows(PATHS, ONE_LAYER)}
    assert [rows[cell]["passed"] for cell in ("lmc", "amc", "gmc", "cac", "cpc")] == [0.5, 0.0, 0.5, 0.5, 1.0]
    assert rows["gmc"]["mean"] == pytest.approx(0.4) and rows["gmc"]["spread"] == pytest.approx(0.1)
    assert (rows["gmc"]["min"], rows["gmc"]["max"]) == pytest.approx((0.3, 0.5))
    assert passed_counts(PATHS) == [3, 2]
    assert passed_counts(PATHS, 0.3) == [4, 4]
    uniform = Paths(torch.full((1, 2, 3), 1 / 3), torch.full((1, 2, 2), 1 / 2))
    assert passed_counts(uniform) == [10]
    with pytest.raises(UserError, match="threshold 0"):
        passed_counts(PATHS, 0.0)


def test_variance_between_kinds_and_within() -> None:
    """Fails if a kind's size does not weigh its mean. Between and within add up to the whole variance."""
    generator = torch.Generator().manual_seed(0)
    paths = Paths(torch.rand(9, 2, 3, generator=generator), torch.rand(9, 2, 2, generator=generator))
    kinds = ["a"] * 2 + ["b"] * 7
    found = kind_variance(paths, kinds)
    whole = torch.cat([part.flatten(1) for part in paths], 1).double().var(dim=0, correction=0).sum().item()
    assert found["between"] + found["within"] == pytest.approx(whole)
    apart = Paths(*(torch.stack([part[0] if kind == "a" else part[1] for kind in kinds]) for part in PATHS))
    assert kind_variance(apart, kinds)["share"] == pytest.approx(1)
    assert kind_variance(mean_paths(PATHS), ["a", "b"])["share"] == 0


def test_everybody_gets_the_paths_of_somebody_else() -> None:
    """Fails if an image can keep its own, or two get the same one's."""
    numbered = Paths(*(torch.arange(7.0).view(7, 1, 1).expand(7, 1, cells) for cells in (3, 2)))
    other = other_paths(numbered, seed=4)
    assert sorted(other.spatial[:, 0, 0].tolist()) == list(range(7))
    assert not (other.spatial == numbered.spatial).any()
    assert torch.equal(other.spatial[:, 0, 0], other.channel[:, 0, 0])


def test_the_swap_test_tells_a_router_from_a_fixed_mixture() -> None:
    """Fails if given path weights are ignored, or the report compares an image with itself.

    The same model twice: with a planted router, and with routers that say the same of every image.
    """
    features = claims.small_features(8)
    planted, fixed = claims.planted_router(), claims.planted_router(0.0)
    captions = captions_of(planted, 8)
    found = swap_test(planted, features, captions)
    assert abs(found["another"] - found["own"]) > 1e-4 and abs(found["mean"] - found["own"]) > 1e-4
    assert found["memory_another"] > 0.05
    dead = swap_test(fixed, features, captions)
    assert dead["another"] == pytest.approx(dead["own"], abs=1e-6)
    assert dead["memory_another"] < 1e-6


def test_own_weights_given_back_change_nothing_and_batches_do_not_matter() -> None:
    model, features = claims.planted_router(), claims.small_features(5)
    paths = collect_paths(model, features, batch=2)
    assert torch.allclose(paths.spatial, model.encode(features).paths.spatial, atol=1e-6)
    assert memory_change(model, features, paths, batch=3) < 1e-6
    captions = captions_of(model, 5)
    whole = caption_loss(model, features, captions)
    assert caption_loss(model, features, captions, paths, batch=2) == pytest.approx(whole, abs=1e-5)


def test_the_loss_is_that_of_the_training() -> None:
    """Mean over words, `<eos>` counted and `<pad>` not. Fails if the first word or padding counts."""
    model = tiny_model()
    features = tiny_features(model, 2)
    captions = [[[2, 5, 6, 3]], [[2, 7, 3]]]
    log_probs = model(features, torch.tensor([[2, 5, 6], [2, 7, 1]]))
    said = [log_probs[0, 0, 5], log_probs[0, 1, 6], log_probs[0, 2, 3], log_probs[1, 0, 7], log_probs[1, 1, 3]]
    assert caption_loss(model, features, captions) == pytest.approx(-torch.stack(said).mean().item(), abs=1e-5)


def test_a_variant_with_fewer_cells_has_its_own_rows() -> None:
    model = tiny_model(cells=("gmc", "cpc"))
    found = report(model, tiny_features(model))
    assert [row["cell"] for row in found["cells"]] == ["gmc", "cpc"] * 2
    assert found["passed_cells"] == {"of": 4, "mean": 4, "min": 4, "max": 4}
    assert "swap" not in found and "kinds" not in found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("mini") / "model")


def test_mini_scenes_are_analysed_by_default(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Report, pictures and record; kinds and the swap test, as the scenes' captions are known."""
    monkeypatch.setattr(demo, "mini_model_path", lambda: folder)
    found = run_analyze(AnalyzeSettings(limit=8), tmp_path / "run")
    assert {"cells", "kinds", "swap", "passed_cells"} <= set(found.report) and found.report["images"] == 8
    written = read_json(tmp_path / "run" / "routing.json")
    assert [len(one["layers"]) for one in written["paths"]] == [2] * 8
    assert sum(written["paths"][0]["layers"][0].values()) == pytest.approx(2, abs=1e-5)
    for name in ("weights.png", "paths.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            picture.verify()
    assert RunRecord.load(tmp_path / "run").metrics["swap"] == found.report["swap"]
    console = Console(width=140)
    with console.capture() as captured:
        console.print(routing_tables(found.report))
    assert "another image's" in captured.get() and "GMC" in captured.get()


def test_a_data_set_features_alone_and_images(folder: Path, tmp_path: Path) -> None:
    """Fails if a mini data set's kinds are not found, or captions are asked for where there are only features."""
    data = write_mini_coco(tmp_path / "coco", 0, 6, 2, 3, images=True)
    found = run_analyze(AnalyzeSettings(model=str(folder), data=str(data), split="train"), tmp_path / "data")
    assert found.report["images"] == 6 and "kinds" in found.report and "swap" in found.report
    write_grid_features(tmp_path / "own.h5", ((one, torch.rand(49, 24)) for one in range(4)))
    alone = AnalyzeSettings(model=str(folder), features=str(tmp_path / "own.h5"), limit=3)
    assert "swap" not in run_analyze(alone, tmp_path / "features").report
    pictures = [str(path) for path in sorted(data.glob("images/*/*.png"))[:2]]
    shown = run_analyze(AnalyzeSettings(model=str(folder), images=tuple(pictures)), tmp_path / "images")
    assert shown.report["images"] == 2
    with pytest.raises(UserError, match=r"no such image"):
        run_analyze(AnalyzeSettings(model=str(folder), images=("none.png",)), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_local_cells_gate_is_undone_by_its_normalisation() -> None:
    """As released the gate scales a position's whole vector, and LayerNorm takes such a scale away: what the cell gives
    is the normalised input, whatever the gate. The axial gate, one number a channel, is not undone. Fails if the local
    cell's output is made to depend on its gate, as the README says that it does not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 49, 64, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cells = {name: build_cell(name, DTNetConfig(d_model=64)).eval() for name in ("lmc", "amc")}
    for name, undone in (("lmc", True), ("amc", False)):
        branch = cells[name]
        change = (branch(x) - branch.norm(x)).abs().max().item()
        assert (change < 1e-3) == undone, (name, change)
    gate = cells["lmc"].cell.gate(x)
    assert gate.max() - gate.min() > 0.01, "the gate itself does differ"


@pytest.mark.slow
def test_routers_that_are_dead_as_initialised_at_full_width() -> None:
    """Of 36 routers, six of each of the seeds 0 to 5, on random features. Fails if the README's number is another."""
    dead = 0
    for seed in range(6):
        model = DTNet(DTNetConfig(), seed=seed).eval()
        features = torch.randn(50, 49, 2048, generator=torch.Generator().manual_seed(seed)).relu()
        dead += sum(not row["firing"] for row in router_units(model, features, 25))
    assert dead == 3
