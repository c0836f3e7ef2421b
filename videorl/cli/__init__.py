"""The command `videorl`: each module but `main` and `command` is a sub-command, which parses, calls and prints."""
