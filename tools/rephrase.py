"""`videorl rephrase` from a clone; what it does stands in videorl/cli/rephrase.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from videorl.cli.rephrase import main

if __name__ == "__main__":
    main()
