"""`python -m dyvte` and `torchrun -m dyvte train`."""

from dyvte.commands.app import main

if __name__ == "__main__":
    main()
