"""Signals as requests."""

import os
import signal
import subprocess
import sys
import time

import pytest

CODE = """
import os, sys, time
from vdengine.signals import SIGNALS, Requests
seen = []
with Requests(SIGNALS) as requests:
    if "tell" in sys.argv:
        requests.tell(seen.append)
    reading, writing = os.pipe()
    if "fork" in sys.argv:
        if not os.fork():
            os.write(writing, b"!")
            time.sleep(60)
            os._exit(0)
        os.read(reading, 1)
    print("ready", flush=True)
    while not seen or "busy" in sys.argv:
        time.sleep(0.01)
print("asked", seen[0], flush=True)
"""


def start(*words):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_first_signal_asks(signum):
    """Guards the work of a run that is to stop: nothing is raised, whoever was told goes on to its own end."""
    process = start("tell")
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out == f"asked {int(signum)}\n"
    assert err.strip() == f"{signum.name}: stopping after this step, with a checkpoint (once more to leave at once)"


def test_before_there_is_anything_to_save_it_ends():
    """Guards the seconds before a run's first step, in which a signal would otherwise be swallowed."""
    process = start()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "SIGTERM, nothing is learned yet: leaving" in err


def test_a_second_signal_leaves_at_once():
    """Guards a process whose main thread never looks up again. One that comes on the heels of the first is the same
    request, passed on by a launcher."""
    process = start("tell", "busy")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and "SIGINT, again: leaving at once" in err


def test_a_forked_child_has_its_own_signals():
    """Guards against a signal to the whole process group that counts once for each process in it."""
    process = start("tell", "fork", "busy")
    os.killpg(process.pid, signal.SIGTERM)  # ends the child
    time.sleep(1)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
