"""`python -m fitprune`, and `torchrun -m fitprune ...` for several processes."""

from fitprune.commands.app import main

if __name__ == "__main__":
    main()
