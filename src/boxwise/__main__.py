"""`python -m boxwise` is `boxwise`."""

import sys

from boxwise.cli import main

sys.exit(main())
