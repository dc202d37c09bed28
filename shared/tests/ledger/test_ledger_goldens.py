"""Golden cases: what agrees, what differs, and what is no comparison at all."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tenfold import UserError
from tenfold.ledger.goldens import Comparison, check_case, find_cases, goldens, parity


def _double(case, tensors, compare):
    for number in range(case["config"]["count"]):
        compare.close(f"item {number}", 2 * tensors["in/x"][number], tensors["out/y"][number], "double")


COMPUTATIONS, TOLERANCES = {"double": _double}, {"double": (1e-6, 1e-3)}


@pytest.fixture
def case(tmp_path):
    """A case of three numbers, to be changed."""

    def write(count=3, computation="double", **changes):
        tensors = {"in/x": torch.tensor([1.0, 2.0, 3.0]), "out/y": torch.tensor([2.0, 4.0, 6.0])} | changes
        (tmp_path / "case.json").write_text(json.dumps({"computation": computation, "config": {"count": count}}))
        save_file(tensors, tmp_path / "case.safetensors")
        return tmp_path / "case.json"

    return write


def test_equal_numbers_agree_and_say_how_many(case):
    outcome = check_case(case(), COMPUTATIONS, TOLERANCES)
    assert outcome.passed and outcome.value == "3 values agree"


@pytest.mark.parametrize("wrong", [4.1, float("nan"), float("inf")])
def test_a_number_off_its_tolerance_fails_by_name(case, wrong):
    """Fails if NaN passes for a number, or the tolerance is looser than stated."""
    outcome = check_case(case(**{"out/y": torch.tensor([2.0, wrong, 6.0])}), COMPUTATIONS, TOLERANCES)
    assert outcome.passed is False and "item 1" in outcome.detail


def test_another_shape_fails(case):
    outcome = check_case(case(**{"out/y": torch.ones(3, 2)}), COMPUTATIONS, TOLERANCES)
    assert outcome.passed is False and "shape" in outcome.detail


def test_what_compares_nothing_is_no_agreement(case):
    """Fails if a case without sub-cases, or of empty tensors, passes."""
    with pytest.raises(UserError, match="nothing to compare"):
        check_case(case(count=0), COMPUTATIONS, TOLERANCES)
    compare = Comparison(TOLERANCES)
    compare.close("empty", torch.ones(0), torch.ones(0), "double")
    assert compare.compared == 0 and compare.outcome().passed is False


def test_a_case_that_lacks_something_is_named(case, tmp_path):
    """Fails if a missing tensor, file or computation ends in a traceback."""
    with pytest.raises(UserError, match="unknown computation 'treble'"):
        check_case(case(computation="treble"), COMPUTATIONS)
    path = case()
    save_file({"in/x": torch.ones(3)}, tmp_path / "case.safetensors")
    with pytest.raises(UserError, match="no tensor 'out/y'"):
        check_case(path, COMPUTATIONS, TOLERANCES)
    (tmp_path / "case.safetensors").unlink()
    with pytest.raises(UserError, match="without its tensors"):
        check_case(path, COMPUTATIONS, TOLERANCES)
    (tmp_path / "case.json").write_text("[]")
    with pytest.raises(UserError, match="unknown computation None"):
        check_case(path, COMPUTATIONS)


def test_official_keys_need_no_tensors_and_are_no_case(tmp_path):
    (tmp_path / "official_keys.json").write_text('{"computation": "official_keys", "keys": {"a": [1]}}')
    keys = {"official_keys": lambda case, tensors, compare: compare.equal("keys", case["keys"], {"a": [1]})}
    assert check_case(tmp_path / "official_keys.json", keys).passed
    with pytest.raises(UserError, match="no golden case"):
        find_cases(tmp_path)


def test_gradients_are_off_and_the_generator_stays(case):
    """Fails if a comparison keeps gradients of its own, or moves the caller's random numbers."""
    seen = []
    drawn = {"double": lambda *_: (seen.append(torch.is_grad_enabled()), torch.rand(3), _[2].equal("one", 1, 1))}
    before = torch.random.get_rng_state()
    assert check_case(case(), drawn).passed and seen == [False]
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_environment_names_other_cases(monkeypatch, tmp_path):
    monkeypatch.setenv("TENFOLD_GOLDENS", str(tmp_path))
    assert goldens("glass_beads") == tmp_path / "glass_beads"
    monkeypatch.delenv("TENFOLD_GOLDENS")
    assert goldens("glass_beads") is None and parity("glass_beads", "case", {}).passed is None
