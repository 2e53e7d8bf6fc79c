"""The command. Heavy imports happen inside the verbs, so that `--help` is instant."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cyclopts

from inoculate.cli import models, release, studies  # noqa: F401  their verbs
from inoculate.cli.app import app, complain
from inoculate.core import ranks
from inoculate.core.errors import LEFT_OUT, InoculateError, InputError, PlugInWarning

_FOR_SEVERAL = ("align", "vector", "run")
"""Verbs that `accelerate launch` may start in several processes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exit codes 0 done, 1 a stage failed, 2 the input was wrong, 130 interrupted."""
    tokens = sys.argv[1:] if arguments is None else arguments
    _hush()

    def call() -> object:
        if ranks.launched() and tokens and tokens[0] not in _FOR_SEVERAL:
            expected = ", ".join(_FOR_SEVERAL)
            raise InputError("work for one process", field="accelerate launch", found=tokens[0], expected=expected)
        return app(tokens, exit_on_error=False, print_error=False, result_action="return_value")

    sys.exit(_guarded(call))


def _hush() -> None:
    """Keep a deprecation between two libraries, which no user can act on, off stderr; workers inherit the setting.
    What is said of a plug-in is one line, as all that the command says. To do it twice is to do it once."""
    from inoculate.experiments.processes import hush_bitsandbytes

    message = "`is_gradient_checkpointing` is deprecated"
    warnings.filterwarnings("ignore", message=message, category=FutureWarning)
    # a plug-in that is left out is told of once, here, and not by every worker again
    ours = f"ignore:{message}:FutureWarning,ignore:{LEFT_OUT} :UserWarning"
    others = os.environ.get("PYTHONWARNINGS", "")
    if ours not in others:
        os.environ["PYTHONWARNINGS"] = f"{others},{ours}".lstrip(",")
    hush_bitsandbytes()
    warnings.formatwarning = _shown


_formatted = warnings.formatwarning


def _shown(message: Warning | str, category: type[Warning], *where: Any) -> str:
    return f"inoculate: {message}\n" if issubclass(category, PlugInWarning) else _formatted(message, category, *where)


def _guarded(call: Callable[[], object]) -> int:
    try:
        code = call()
        sys.stdout.flush()
    except InputError as error:
        return complain(str(error), 2)
    except cyclopts.CycloptsError as error:
        return complain(str(error), 2)
    except InoculateError as error:
        return complain(str(error), 1)
    except KeyboardInterrupt:
        return complain("interrupted; run the same command again to go on", 130)
    except BrokenPipeError:  # `inoculate records STORE | head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full or gone, a file that may not be written
        return complain(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    return code if isinstance(code, int) else 0
