"""`benchmarks/efficiency.py`: what it counts, what it calls a front, and what a small run writes."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tenfold import UserError
from tenfold.cli.settings import MINI, HostSettings
from tenfold.hosts.loading import load_host
from tenfold.ledger import PAPERS as PAPERS_HERE
from tenfold.ledger import Entry, Outcome, load_ledger, render_report
from tenfold.ledger.evidence import evaluate
from tenfold.ledger.which import RECORD, chosen_point, load_comparison

ROOT = Path(__file__).parent.parent
RUNNER = ROOT / "benchmarks" / "efficiency.py"
PAPERS, PEERS = {"FitPrune", "DyVTE", "EAS"}, {"FastV", "PyramidDrop", "VisionZip"}
CONTROLS = {"random, FitPrune's recipe", "random before layer 0", "uniform recipe"}
TOGETHER = {"FitPrune + DyVTE", "EAS + FitPrune"}


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    """The runner's own modules."""
    sys.path.insert(0, str(RUNNER.parent))
    yield
    sys.path.remove(str(RUNNER.parent))
    for name in [name for name in sys.modules if name == "efficiency" or name.startswith("efficiency.")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def mini():
    return load_host(HostSettings(model=MINI))


@pytest.fixture(scope="module")
def prompt(mini):
    from fitprune.evaluation.compare_run import mini_items
    from tenfold.hosts.answers import Protocol, encode_batch

    (item,) = mini_items(5, 1)
    one = Protocol.of(mini.model, mini.processor).prompt(mini.processor, item.picture(), item.text)
    return encode_batch(mini.processor, mini.model, [one])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of a minute's tenth: its record, and the folder."""
    output = tmp_path_factory.mktemp("efficiency") / "small.json"
    options = "--limit 8 --ratio 0.6 --seeds 2 --pairs 2 --costed 1 --rounds 1 --new-tokens 3".split()
    done = subprocess.run(
        [sys.executable, RUNNER, *options, "--output", output], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text()), output


def test_visionzip_keeps_dominant_tokens_and_averages_the_others():
    """Fails if what the class token looks at is changed, or a mean takes in tokens of another direction."""
    from efficiency.visionzip import contextual_tokens, merge

    features = torch.arange(8.0)[None, :, None].repeat(1, 1, 2)
    attention = torch.tensor([[0.0, 9, 0, 8, 0, 0, 7, 0]])
    keys = torch.tensor([[[1.0, 0], [5, 5], [1, 0], [5, 5], [0, 1], [1, 0], [5, 5], [0, 1]]])
    merged, kept = merge(features, attention, keys, keep=4)
    assert contextual_tokens(4) == 1 and kept.sum() == 4 and bool(kept[0, [1, 3, 6]].all())
    target = int((kept[0] & ~torch.tensor([0, 1, 0, 1, 0, 0, 1, 0]).bool()).nonzero())
    assert torch.equal(merged[0, [1, 3, 6], 0], torch.tensor([1.0, 3, 6]))
    assert merged[0, target, 0] == torch.tensor([0.0, 2, 4, 5, 7]).mean()
    same, _ = merge(features, attention, keys, keep=8)  # nothing is left out: every token is its own mean
    assert torch.equal(same, features)


def test_visionzip_attends_as_the_tower_does(mini, prompt):
    """Fails if the class token's row is of another layer, or unscaled: against the tower's own eager maps."""
    from efficiency.visionzip import _places, class_attention

    attention, _ = _places(mini.model)
    seen = []
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    tower = mini.model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        maps = tower(prompt["pixel_values"], output_attentions=True).attentions[-1]
        tower.set_attn_implementation("sdpa")
        handle.remove()
        found, _ = class_attention(attention, seen[0])
    assert torch.allclose(found, maps[:, :, 0, 1:].sum(1), atol=1e-5)


def test_visionzip_leaves_the_host_as_it_was(mini, prompt):
    """Fails if a hook stays, or a share of tokens enters that nobody asked for."""
    from efficiency.visionzip import VisionZip

    with torch.no_grad():
        before = mini.model(**prompt).logits
        method = VisionZip(keep=30, of=100)
        with method(mini.model):
            mini.model(**prompt)
        assert method.visual_tokens() == [(30,)] * 13
        with VisionZip(keep=100, of=100)(mini.model):
            assert torch.equal(mini.model(**prompt).logits, before)
        assert torch.equal(mini.model(**prompt).logits, before)


def test_counted_flops_are_those_of_the_formula(mini, prompt):
    """One token of an answer: decoder by fitprune's closed formula, tower, projector and head by hand. Fails if a
    product is left out or counted twice, attention for one."""
    from efficiency.arms import unpruned
    from efficiency.costs import count

    from fitprune.costs import DecoderShape, true_prefill_macs

    shape, config = DecoderShape.of(mini.model.config), mini.model.config
    tokens = prompt["input_ids"].shape[1]
    decoder = true_prefill_macs([0] * shape.layers, 100, tokens - 100, shape)
    width, inner = config.vision_config.hidden_size, config.vision_config.intermediate_size
    layer = 101 * (4 * width**2 + 2 * width * inner) + 2 * 101**2 * width
    tower = 100 * 3 * config.vision_config.patch_size**2 * width + config.vision_config.num_hidden_layers * layer
    projector = 100 * (width * shape.hidden + shape.hidden**2)
    head = config.text_config.vocab_size * shape.hidden
    found, kept, peak = count(mini.model, unpruned(), prompt, {"max_new_tokens": 1})
    assert found == 2 * (decoder + tower + projector + head)
    assert kept == 2 * shape.layers * tokens * shape.hidden * 4 and peak > kept


def test_live_bytes_fall_when_a_tensor_dies():
    """Fails if views count as new, or what is gone still counts."""
    from efficiency.costs import LiveBytes

    with LiveBytes() as live:
        one = torch.zeros(1000)
        view = one[:10].view(2, 5)
        del one, view
        two = F.relu(torch.zeros(500))
        del two
    assert live.peak == 4000 and live.now == 0


def test_the_front_is_what_nothing_beats():
    """Fails if a tie is beaten by itself, or a dearer row stays for being equally right."""
    from efficiency.findings import mark_front

    rows = [
        {"accuracy": {"value": value}, "flops": flops}
        for value, flops in ((0.9, 100), (0.9, 80), (0.8, 80), (0.5, 20), (0.5, 20), (0.4, 30))
    ]
    mark_front([*rows, nothing := {"accuracy": None, "flops": 1}])
    assert [row["front"] for row in rows] == [False, True, False, True, True, False] and not nothing["front"]


def test_pairs_are_of_one_picture_and_use_no_question_twice():
    """Fails if a second turn is asked about another picture."""
    from efficiency.asking import pairs

    from fitprune.evaluation.compare_run import mini_items

    items = mini_items(5, 11)
    found = pairs(items, 3)
    assert [(pair.first, pair.second) for pair in found] == [(0, 1), (2, 3), (4, 5)]
    assert all(items[pair.first].image is items[pair.second].image for pair in found)


def test_the_host_loses_nothing_to_a_first_question(small):
    """Fails if the second question is asked at other positions, or words of the first one stay in the cache."""
    second = small[0]["metrics"]["rows"][0]["second"]
    assert second["pairs"] == 2 and second["fresh"] == second["later"]


def test_a_small_run_compares_every_method(small):
    """Fails if a method is missing without a reason, or a row lacks a number."""
    record, output = small
    rows = record["metrics"]["rows"]
    assert {row["method"] for row in rows} == {"unpruned"} | PAPERS | PEERS | CONTROLS | TOGETHER
    assert list(record["metrics"]["left_out"]) == ["γ-MoD"] and "gamma-mod train" in str(record["metrics"]["left_out"])
    assert any(row["front"] for row in rows) and rows[0]["flops_share"] == 1
    for row in rows:
        assert 0 < row["flops_share"] < 1.05 and row["prefill_seconds"] > 0 and row["decode_seconds"] > 0, row["method"]
        assert 0 <= row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"] <= 1
        assert row["seeds"] == (2 if row["method"].startswith("random") else 1)
    assert record["verb"] == "efficiency" and record["data"]["model"].startswith("sha256:")
    assert {row["method"] for row in rows if row.get("second")} >= {"unpruned", "FitPrune", "DyVTE", "EAS"}
    assert load_comparison(output)["rows"] == rows


def test_the_page_shows_every_row_and_the_picture_is_one(small):
    """Fails if a method is measured and not shown."""
    record, output = small
    page = output.with_suffix(".md").read_text()
    for row in record["metrics"]["rows"]:
        assert f"{row['method']}" in page and f"{100 * row['flops_share']:.1f} %" in page
    assert f"({output.with_suffix('.png').name})" in page
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def front(small, tmp_path_factory):
    """A report of all ten papers, from their ledgers and what is on record, with the small comparison in front."""
    entries = []
    for paper in PAPERS_HERE:
        ledger = load_ledger(ROOT / "packages" / paper.package / "claims.yaml")
        checks = {claim.check: lambda: Outcome(None, True) for claim in ledger.claims if claim.check}
        results = evaluate(ledger, checks, ROOT / "packages" / paper.package / "results")
        entries.append(Entry(paper, ledger, results))
    return render_report(entries, tmp_path_factory.mktemp("front") / "report", small[1])


def test_the_front_page_answers_in_ten_lines_that_lead_to_their_evidence(front):
    """Fails if a paper has no line, or a link leads to a page or a claim that is not there."""
    text = front.read_text()
    answers = re.findall(r"<li><span class=\"soft\">You want .*?</li>", text, re.S)
    assert len(answers) == 10
    for answer in answers:
        page, _, anchor = re.search(r'class="found" href="([^"]+)"', answer)[1].partition("#")
        assert (front.parent / page).is_file()
        assert not anchor or f'id="{anchor}"' in (front.parent / page).read_text(), answer
    assert [answer.count("efficiency.html") for answer in answers] == [1, 1, *[0] * 8]
    assert (front.parent / re.search(r'<img src="(figures/efficiency\.png)"', text)[1]).is_file()


def test_every_number_of_the_comparison_stands_on_its_page(front, small):
    """Fails if a row is left out of the page that the front page leads to."""
    text = (front.parent / "efficiency.html").read_text()
    for row in small[0]["metrics"]["rows"]:
        assert f"<b>{row['method'].replace(chr(39), '&#39;')}</b>" in text
        assert f">{100 * row['flops_share']:.1f}&nbsp;%</span>" in text
    assert small[0]["id"] in text and "gamma-mod train" in text


def test_the_chosen_point_is_the_cheapest_that_is_not_told_apart():
    """Fails if a cheaper point that loses answers is quoted for one that does not."""
    rows = [
        {"flops_share": share, "change": {"value": value, "low": value - 0.02, "high": value + 0.02}}
        for share, value in ((0.9, 0.0), (0.7, -0.01), (0.4, -0.3))
    ]
    assert chosen_point(rows)["flops_share"] == 0.7
    assert chosen_point(rows[2:])["flops_share"] == 0.4 and chosen_point([]) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "page.html"], "not a json file: page.html"),
        (["--ratio", "1.5"], "ratio 1.5"),
        (["--model", "nowhere", "--benchmark", "gqa"], "no data"),
        (["--gamma-mod", "nowhere"], "no such folder: nowhere"),
        (["--precision", "int8"], "precision: 'int8'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch, capsys, options, said):
    """Fails if it is a traceback, or a file is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["efficiency.py", *options])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUNNER), run_name="__main__")
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1 and said in told, told
    assert list(tmp_path.iterdir()) == []


def test_a_host_and_a_benchmark_of_ones_own(mini, tmp_path):
    """A folder in transformers' layout, GQA's official files, a recipe: one command. Fails if a method that needs
    nothing more is left out, or one that was prepared for another host is applied."""
    from fitprune import Recipe
    from tenfold.data import write

    mini.model.save_pretrained(tmp_path / "host")
    mini.processor.save_pretrained(tmp_path / "host")
    write.WRITERS[write.Format.gqa](tmp_path / "gqa", 7, 4, 96)
    Recipe.uniform(12, 100, 60).save(tmp_path / "recipe.json")
    options = "--ratio 0.4 --seeds 1 --costed 1 --rounds 1 --new-tokens 3 --device cpu --limit 6 --pairs 2"
    places = ["--model", "host", "--benchmark", "gqa", "--data", "gqa", "--recipe", "recipe.json", "--output", "x.json"]
    done = subprocess.run(
        [sys.executable, RUNNER, *options.split(), *places], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text())["metrics"]
    assert {row["method"] for row in found["rows"]} == {"unpruned", "FitPrune"} | PEERS | CONTROLS
    assert set(found["left_out"]) >= {"DyVTE", "EAS", "γ-MoD"} and found["questions"] == 6
    assert (tmp_path / "x.md").is_file() and found["elsewhere"] == []


def test_another_record_is_no_comparison(tmp_path):
    """Fails if the front page would quote whatever lies there."""
    with pytest.raises(UserError, match=r"peers\.json"):
        load_comparison(ROOT / "benchmarks" / "results" / "peers.json")


def test_the_committed_record_is_of_every_method():
    """Fails if the record is older than a method that is compared."""
    metrics = load_comparison(ROOT / RECORD)
    assert {row["method"] for row in metrics["rows"]} >= {"unpruned"} | PAPERS | PEERS | CONTROLS | TOGETHER
    assert len({row["point"] for row in metrics["rows"] if row["method"] == "FitPrune"}) >= 3
