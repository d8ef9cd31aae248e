"""The person at the keyboard: command line, configs, checks."""
