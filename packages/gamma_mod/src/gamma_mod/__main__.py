"""`python -m gamma_mod`, and `torchrun -m gamma_mod`."""

from gamma_mod.commands.app import main

if __name__ == "__main__":
    main()
