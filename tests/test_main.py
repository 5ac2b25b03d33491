"""`vdengine` by itself."""

import subprocess
import sys


def test_console_command():
    """Guards `vdengine` without and with a verb."""
    done = subprocess.run([sys.executable, "-m", "vdengine"], capture_output=True, text=True)
    assert done.returncode == 0 and "train" in done.stdout
    done = subprocess.run([sys.executable, "-m", "vdengine", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and "train" in done.stderr
