"""`python -m flashsloth`, and `torchrun -m flashsloth train`."""

from flashsloth.commands.app import main

if __name__ == "__main__":
    main()
