"""The command line: verbs become commands, results become lines, errors become exit statuses."""
