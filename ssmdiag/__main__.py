"""`python -m ssmdiag`."""

from ssmdiag.cli import run

if __name__ == "__main__":
    run()
