"""The ceilings of mypy's errors: above one is a failure, and none rises."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("types_ceiling", Path(__file__).parent / "types_ceiling.py")
ceiling = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ceiling)

REPORT = """shared/src/tenfold/errors.py:1: error: Something  [misc]
packages/dyvte/src/dyvte/a.py:2: error: Something  [misc]
packages/dyvte/src/dyvte/a.py:2: note: see there
packages/dyvte/src/dyvte/b.py:3: error: Something  [misc]
Found 3 errors in 3 files
"""


def test_one_error_above_the_ceiling_is_a_failure_and_one_below_lets_it_fall():
    """Fails if notes are counted, a package without a ceiling may have errors, or a ceiling could rise."""
    found = ceiling.counted(REPORT)
    assert found == {"tenfold": 1, "dyvte": 2}
    assert ceiling.judged(found, {"dyvte": 2}) == (["tenfold: 1 errors, at most 0"], {})
    assert ceiling.judged(found, {"tenfold": 1, "dyvte": 1}) == (["dyvte: 2 errors, at most 1"], {})
    assert ceiling.judged(found, {"tenfold": 1, "dyvte": 5, "eas": 3}) == ([], {"dyvte": 2, "eas": 0})
