"""`python -m llama3.cli` is the command `llama3`."""

import sys

from llama3.cli import main

sys.exit(main())
