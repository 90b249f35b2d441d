"""Run the command line: ``python -m mvtec_lab``."""

import sys

try:
    from mvtec_lab.cli import main
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] == "mvtec_lab":
        raise
    sys.exit(
        f"error: {error.name} is not installed for {sys.executable}: make installs the lab into .venv, then "
        ".venv/bin/python -m mvtec_lab, or make shell; without make: pip install -c constraints.txt -e ."
    )

if __name__ == "__main__":
    sys.exit(main())
