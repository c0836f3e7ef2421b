"""`videorl extract` from a clone; what it does stands in videorl/cli/extract.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from videorl.cli.extract import main

if __name__ == "__main__":
    main()
