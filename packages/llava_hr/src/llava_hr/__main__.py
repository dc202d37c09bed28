"""`python -m llava_hr`, and `torchrun -m llava_hr ...` for several processes."""

from llava_hr.commands.app import main

if __name__ == "__main__":
    main()
