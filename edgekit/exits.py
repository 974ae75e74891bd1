"""How a command ends: every error of the user's in one clear line, with the exit code that it stands for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from edgekit.errors import EXIT_INTERRUPTED, EXIT_LOAD, EXIT_OK, EXIT_USAGE, EdgekitError, StoppedError
from edgekit.extras import missing_extra


def run_command(command: click.Command, args: Sequence[str], name: str) -> int:
    """Run `command` as `name` with `args` and return its exit code."""
    stdout = sys.stdout
    try:
        result: Any = command.main(args=list(args), prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as e:
        return int(e.exit_code)
    except click.ClickException as e:
        e.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except SystemExit as e:
        # when the reader of our output goes away (`| head`), click puts a deaf stream in its place and ends so
        return EXIT_OK if sys.stdout is not stdout else int(e.code or 0)
    except StoppedError as e:
        sys.stderr.write(f"{e}\n")  # as asked for: no error
        return e.exit_code
    except EdgekitError as e:
        sys.stderr.write(f"error: {e}\n")
        return e.exit_code
    except ModuleNotFoundError as e:
        missing = missing_extra(e, " ".join((name, *args[:1])))
        if missing is None:
            raise
        sys.stderr.write(f"error: {missing}\n")
        return missing.exit_code
    except OSError as e:
        # of a path that nobody expected to be refused, such as one in a folder that may not be entered
        named = f"{e.filename}: " if e.filename is not None else ""
        sys.stderr.write(f"error: {named}{e.strerror or e}. Check the path, its permissions and the disk.\n")
        return EXIT_LOAD
    return result if isinstance(result, int) else EXIT_OK
