"""``python -m mvtec_lab``."""

import sys

from mvtec_lab.sweep import main

if __name__ == "__main__":
    sys.exit(main())
