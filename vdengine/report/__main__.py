import sys

from vdengine.report import main

sys.exit(main())
