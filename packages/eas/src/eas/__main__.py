"""`python -m eas`, and `torchrun -m eas ...` for several processes."""

from eas.commands.app import main

if __name__ == "__main__":
    main()
