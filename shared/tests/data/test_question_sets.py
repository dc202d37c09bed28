"""Folders of benchmarks: where they are found, what is drawn without one, what is refused; the fingerprint."""

from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

from tenfold import UserError
from tenfold.data import write
from tenfold.data.benchmarks import BENCHMARKS, benchmark
from tenfold.data.formats import Picture
from tenfold.data.question_sets import benchmark_folders, find_named, mini_sets, questions_fingerprint

SPELLINGS = {"vqav2": ("vqav2",), "mmvet": ("mm-vet", "mmvet"), "mmbench_cn": ("mmbench_cn",)}


def places(wanted=None, data=None, **options):
    bench = BENCHMARKS[wanted] if wanted else None
    with benchmark_folders(SPELLINGS, bench, data, asked=wanted or "all", **options) as found:
        return found


def test_folders_are_found_in_any_spelling_and_in_the_registrys_order(tmp_path):
    """Fails if case or dashes matter, or files count as folders."""
    for name in ("MM_Vet", "VQAv2", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "mmbench_cn").touch()
    assert places(data=tmp_path) == {"vqav2": tmp_path / "VQAv2", "mmvet": tmp_path / "MM_Vet"}
    assert list(places(data=tmp_path)) == ["vqav2", "mmvet"]


def test_the_one_that_is_wanted_may_be_named_or_lie_in_the_folder(tmp_path):
    """Fails if its own folder is looked for in vain."""
    assert places("mmvet", tmp_path) == {"mmvet": tmp_path}
    (tmp_path / "mm-vet").mkdir()
    assert places("mmvet", tmp_path) == {"mmvet": tmp_path / "mm-vet"}
    assert places("vqav2", str(tmp_path)) == {"vqav2": tmp_path}


@pytest.mark.parametrize(
    ("wanted", "data", "message"),
    [
        (None, "gone", "no such folder: .*gone .expected the benchmarks' folders"),
        ("mmvet", "gone", "no such folder: .*the files of MM-Vet: mm-vet.json"),
        (None, "", "no benchmark's folder in it: .*one of vqav2, mm-vet, mmbench_cn"),
        (None, None, "no data: --benchmark all .expected --data FOLDER with the benchmarks' folders"),
        ("mmvet", None, "no data: --benchmark mmvet .expected --data FOLDER with mm-vet.json"),
    ],
)
def test_what_is_not_there_is_named(wanted, data, message, tmp_path):
    with pytest.raises(UserError, match=message):
        places(wanted, tmp_path / data if data is not None else None)


def test_sets_are_drawn_where_no_folder_is_named():
    """Fails if a set is drawn that was not asked for, stays behind, or another world is drawn."""
    drawn = mini_sets(SPELLINGS, 7, 2, 32)
    assert list(drawn) == ["vqav2", "mmvet"]
    with benchmark_folders(SPELLINGS, BENCHMARKS["vqav2"], None, asked="vqav2", drawn=drawn) as found:
        assert list(found) == ["vqav2"]
        first = questions_fingerprint(benchmark("vqav2").read(found["vqav2"]))
    assert not found["vqav2"].exists()
    with benchmark_folders(SPELLINGS, None, None, asked="all", drawn=drawn) as found:
        assert list(found) == ["vqav2", "mmvet"] and all(place.is_dir() for place in found.values())
        assert questions_fingerprint(benchmark("vqav2").read(found["vqav2"])) == first
    with benchmark_folders(SPELLINGS, None, None, asked="all", drawn=drawn, default=["mmvet"]) as found:
        assert list(found) == ["mmvet"]
    with pytest.raises(UserError, match=r"no mini set: mmbench_cn .expected one of vqav2, mmvet, or --data FOLDER"):
        places("mmbench_cn", drawn=drawn)


def test_names_are_found_in_any_spelling():
    assert find_named("MM-Vet", SPELLINGS) == "mmvet" and find_named("mmbenchcn", SPELLINGS) == "mmbench_cn"
    with pytest.raises(UserError, match=r"unknown benchmark: vqa .expected vqav2 or mmvet or mmbench_cn"):
        find_named("vqa", SPELLINGS)


def test_the_fingerprint_is_of_content_and_of_no_path(tmp_path):
    """Fails if a path goes in, or a prompt, an answer or a pixel does not."""
    draw = partial(write.write_vqav2, seed=3, count=2, size=32)
    for name in ("here", "there"):
        draw(tmp_path / name)
    here, there = (benchmark("vqav2").read(tmp_path / name) for name in ("here", "there"))
    known = questions_fingerprint(here)
    assert questions_fingerprint(there) == known != questions_fingerprint(here[::-1])
    assert questions_fingerprint([replace(here[0], prompt="?"), *here[1:]]) != known
    other = replace(here[0].sample.annotation, answers=("seven",) * 10)
    assert (
        questions_fingerprint([replace(here[0], sample=replace(here[0].sample, annotation=other)), *here[1:]]) != known
    )
    blank = Picture(Image.new("RGB", (4, 4)))
    assert questions_fingerprint([replace(here[0], picture=blank), *here[1:]]) != known
