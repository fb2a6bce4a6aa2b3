"""The foundation: errors, files written whole, figures as text, validation, messages, what the machine offers."""
