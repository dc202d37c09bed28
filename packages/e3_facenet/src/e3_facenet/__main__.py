"""`python -m e3_facenet`, and `torchrun -m e3_facenet ...` for several processes."""

from e3_facenet.commands.app import main

if __name__ == "__main__":
    main()
