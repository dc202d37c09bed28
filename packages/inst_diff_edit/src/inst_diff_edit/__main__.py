"""`python -m inst_diff_edit`, and `torchrun -m inst_diff_edit ...` for several processes."""

from inst_diff_edit.commands.app import main

if __name__ == "__main__":
    main()
