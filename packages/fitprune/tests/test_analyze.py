"""The attention statistics against full maps, and the command that shows them."""

import sys

import pytest
import torch

from fitprune.commands.app import main
from fitprune.evaluation.analysis import MEASURES, analyze, rank_correlation, top_share
from fitprune.recipe import Recipe
from fitprune.search import collect_statistics
from tenfold.data import mini_host
from tenfold.runs import RunRecord, read_json
from tenfold.testing.hosts import IMAGE, Prompts, build


def test_statistics_equal_those_of_the_full_attention_maps():
    """Fails if a mean replaces the maximum over heads, or rows of the text before the image count."""
    model, prompts = build("llava", "eager"), Prompts("llava")
    samples = [prompts.batch([[("image", 4), words]]) for words in (6, 3)]
    values, visual = analyze(model, samples)
    assert visual == [16, 16]
    for number, sample in enumerate(samples):
        with torch.no_grad():
            maps = model(**sample, output_attentions=True).attentions
        image = (sample["input_ids"][0] == IMAGE).nonzero()[:, 0]
        text = torch.arange(int(image[-1]) + 1, sample["input_ids"].shape[1])
        for layer, attention in enumerate(maps):
            strongest = attention[0].max(0).values.double()
            cross, self_ = strongest[text][:, image].mean(0), strongest[image][:, image].mean(0)
            expected = (
                cross.sum(),
                self_.sum(),
                cross.sort(descending=True).values[:2].sum() / cross.sum(),
                self_.sort(descending=True).values[:2].sum() / self_.sum(),
                torch.corrcoef(torch.stack((self_.argsort().argsort().double(), torch.arange(16).double())))[0, 1],
            )
            ours = [values[name][number, layer] for name in MEASURES]
            torch.testing.assert_close(torch.stack(ours), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_the_masses_are_those_of_the_recipe_search():
    model, sample = build("llava"), Prompts("llava").batch([[("image", 4), 6]])
    values, _ = analyze(model, [sample])
    searched = collect_statistics(model, sample)
    torch.testing.assert_close(values["cross_mass"][0], torch.tensor(searched.cross).double(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(values["self_mass"][0], torch.tensor(searched.self_).double(), atol=1e-6, rtol=1e-5)


def test_concentration_and_rank_correlation_by_hand():
    """Fails if equal values get different ranks, or the weakest tenth is taken for the strongest."""
    assert top_share(torch.ones(30).double()) == pytest.approx(0.1)
    assert top_share(torch.tensor([9.0, 1, 0, 0])) == pytest.approx(0.9)
    place = torch.arange(4).double()
    assert rank_correlation(torch.tensor([8.0, 4, 2, 1]).double(), place) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert rank_correlation(torch.tensor([0.0, 5, 5, 7]).double(), place) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation(torch.ones(4).double(), place).isnan()


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fitprune", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return exit.value.code or 0


def test_the_command_writes_figures_and_a_plot(tmp_path, monkeypatch, capsys):
    layers = mini_host.config().text_config.num_hidden_layers
    recipe = Recipe.uniform(layers, mini_host.VISUAL_TOKENS, layers)
    recipe.save(tmp_path / "recipe.json")
    options = ("--limit", 2, "--recipe", tmp_path / "recipe.json", "--output", tmp_path / "run")
    assert command(monkeypatch, "analyze", *options) == 0
    assert "2 samples of" in capsys.readouterr().out
    figures = read_json(tmp_path / "run" / "analysis.json")
    assert figures == RunRecord.load(tmp_path / "run").metrics and figures["samples"] == 2
    assert all(len(figures["layers"][name]["mean"]) == layers for name in MEASURES)
    assert (tmp_path / "run" / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_a_recipe_for_another_depth_and_a_model_without_samples_are_refused(tmp_path, monkeypatch, capsys):
    for arguments, message in (
        (("--recipe", "llava-1.5-7b:60"), "32 decoder layers"),
        (("llava-hf/llava-1.5-7b-hf",), "no calibration samples"),
    ):
        assert command(monkeypatch, "analyze", *arguments, "--output", tmp_path / "run") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
