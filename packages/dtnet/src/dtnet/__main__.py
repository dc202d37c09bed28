"""`python -m dtnet`, and `torchrun -m dtnet ...` for several processes."""

from dtnet.commands.app import main

if __name__ == "__main__":
    main()
