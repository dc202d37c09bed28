"""`python -m dit_sam`, and `torchrun -m dit_sam train`."""

from dit_sam.commands.app import main

main()
