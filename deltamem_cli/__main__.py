"""`python -m deltamem_cli` is `dmem`."""

import sys

from deltamem_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
