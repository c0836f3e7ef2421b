"""`python -m videorl`: the command `videorl` where it is not installed."""

from videorl.cli.main import main

if __name__ == "__main__":
    main()
