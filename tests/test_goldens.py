"""Golden cases of all packages: an unknown computation and a case without its tensors fail in every one."""

from __future__ import annotations

from importlib import import_module

import pytest
from house import ROOT

from tenfold.cli import package_file
from tenfold.ledger import load_ledger
from tenfold.testing.goldens import cases, frame_is_strict

PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_no_comparison_fails(package, tmp_path):
    """Fails if a package's golden cases pass without having compared anything."""
    frame_is_strict(package, import_module(f"{package}.evidence.parity").COMPUTATIONS, tmp_path)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_case_is_a_claim_of_parity(package):
    """Fails if golden data lie in a package and its ledger does not show them."""
    ledger = load_ledger(package_file(package, "claims.yaml"))
    claims = [claim for claim in ledger.claims if claim.kind == "parity"]
    named = {claim.check for claim in claims if claim.check}
    assert claims and len(claims) >= len(named) > 0 and len(cases(package)) > 0
