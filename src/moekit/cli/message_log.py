"""What moekit has to say while it works, on standard error: one line a message of the standard `logging`."""

import logging

import click


class _Lines(logging.Handler):
    """Write each message as it is, to whatever standard error is by then: bars put it above themselves."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's message as a line."""
        click.echo(self.format(record), err=True)


def show_messages() -> None:
    """Show what moekit logs, from INFO on. A second call changes nothing."""
    logger = logging.getLogger("moekit")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
        logger.setLevel(logging.INFO)
