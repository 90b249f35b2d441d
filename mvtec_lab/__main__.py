"""Run the command line: ``python -m mvtec_lab``."""

import sys

from mvtec_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
