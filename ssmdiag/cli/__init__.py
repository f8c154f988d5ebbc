"""The command line: parse, one library call, render, exit code. One small file per command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line. Known problems and crashes alike exit 2; 1 is kept for findings."""
    # torch's threads spin while they wait: on a busy CI machine small operations then take twenty times as long.
    # Read when torch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ssmdiag.cli import terminal
    from ssmdiag.cli.app import app
    from ssmdiag.errors import SsmdiagError

    terminal.guard_errors()
    terminal.show_tracebacks()
    try:
        app()
    except SsmdiagError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        import traceback

        terminal.remark(traceback.format_exc())
        terminal.remark("ssmdiag crashed: this is a bug in ssmdiag, not in your checkpoint.")
        sys.exit(2)
