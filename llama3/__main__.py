"""`python -m llama3` is the command `llama3`."""

import sys

from llama3.cli import main

if __name__ == "__main__":
    sys.exit(main())
