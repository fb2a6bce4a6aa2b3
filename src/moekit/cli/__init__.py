"""The command line: a thin layer over functions that a Python user calls directly.

Nothing here imports torch until a verb starts to work, so that `--help` answers at once.
"""

import signal
import sys

import click

from moekit.cli.agents import agents
from moekit.cli.chat import chat
from moekit.cli.compare import compare
from moekit.cli.doctor import doctor
from moekit.cli.evaluate import evaluate
from moekit.cli.generate import generate
from moekit.cli.merge import merge
from moekit.cli.message_log import show_messages
from moekit.cli.plan import plan
from moekit.cli.quantize import quantize
from moekit.cli.split import split
from moekit.cli.standard_streams import output_problem, standard_streams
from moekit.cli.train import train
from moekit.cli.upcycle import upcycle
from moekit.cli.verb import Verbs, usage_problem
from moekit.core.errors import MoekitError
from moekit.core.version import __version__

_INTERRUPTED = 130


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="moekit")
def moekit() -> None:
    """Dense, or mixture of experts? moekit trains both on your data and shows what each buys.

    Start with `moekit compare`: it needs no data of yours and takes about ten minutes.
    """
    show_messages()


for verb in (compare, train, evaluate, plan, upcycle, split, merge, quantize, generate, chat, agents, doctor):
    moekit.add_command(verb)


@standard_streams()
def main() -> None:
    """Run the command line and exit: 0, 1 (it failed), 2 (bad arguments or input), 130 (stopped)."""
    # A scheduler's polite stop is a stop like Ctrl-C: what is running saves its state.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = moekit(standalone_mode=False, prog_name="moekit")
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        click.echo(f"Error: {usage_problem(error)}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_INTERRUPTED)
    except Exception as error:  # the last resort: every failure is one sentence, unless --debug asks for more
        if "--debug" in sys.argv:
            raise
        known = isinstance(error, MoekitError | OSError)
        told = output_problem() if isinstance(error, OSError) else None
        text = told or str(error)
        click.echo(f"Error: {text}" if known else f"Unexpected error ({type(error).__name__}): {text}", err=True)
        sys.exit(error.exit_status if isinstance(error, MoekitError) else 1)
    sys.exit(status or 0)
