"""`python -m ssmdiag`."""

from ssmdiag.cli import main

if __name__ == "__main__":
    main()
