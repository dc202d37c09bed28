"""Tenfold: the thin layer that ten vision-language paper packages share.

Data formats, metrics, run records, the claims ledger and the command-line frame live here;
a method's mathematics never does. Importing `tenfold` needs no torch.
"""

from tenfold.errors import InputError, UserError
from tenfold.exports import lazy

__version__ = "0.1.0"

__all__ = ["InputError", "UserError", "__version__", "lazy"]
