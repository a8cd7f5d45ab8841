"""`python -m gdflow`: the command line."""

from gdflow.cli import main

if __name__ == "__main__":
    main()
