"""`python -m openjepa`: the same as the `openjepa` command."""

from openjepa.cli import main

if __name__ == "__main__":
    main()
