"""`videorl narrate` from a clone; what it does stands in videorl/cli/narrate.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from videorl.cli.narrate import main

if __name__ == "__main__":
    main()
