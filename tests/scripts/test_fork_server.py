"""The server that tests fork their processes from survives what they do, and is replaced if it dies."""

import pytest

from tests.scripts.conftest import in_own_process

pytestmark = pytest.mark.runs

# in a process of its own, so that no other test loses its server; one that imports nothing starts at once
PREPARED = """
import os, signal, sys, threading
from multiprocessing import forkserver
from tests.scripts import fork_server

fork_server.CONTEXT.set_forkserver_preload(["tests.scripts.fork_server"])

def server():
    return forkserver._forkserver._forkserver_pid

def check():
    process = fork_server.start(sys.exit, 7)
    process.join(60)
    assert process.exitcode == 7, process.exitcode

os.setsid()
check()
"""
PROGRAMS = {
    "it dies while it is asked": """
for seconds in (0.0, 0.01, 0.1, 0.3):
    os.kill(server(), signal.SIGSTOP)
    threading.Timer(seconds, os.kill, (server(), signal.SIGKILL)).start()
    check()
""",
    "it dies again and again": """
done = threading.Event()

def kill():
    while not done.wait(0.2):
        os.kill(server(), signal.SIGKILL)

killer = threading.Thread(target=kill)
killer.start()
started = [fork_server.start(sys.exit, 7) for _ in range(150)]
done.set()
killer.join()
check()
""",
    "signals to the group": """
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
before = server()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    os.killpg(0, number)
    check()
os.kill(server(), signal.SIGINT)
check()
assert server() == before
""",
    "another folder": """
os.environ.pop("PYTHONPATH", None)
os.chdir("/")
os.kill(server(), signal.SIGKILL)
process = fork_server.start(os.setsid)  # refused where the server has not imported what it preloads
process.join(60)
assert process.exitcode == 0, process.exitcode
""",
    "environment": """
os.chdir("/")
os.environ["ANSWER"] = "42"
process = fork_server.start(exec, "import os; os._exit(os.getcwd() == '/' and int(os.environ['ANSWER']))")
process.join(60)
assert process.exitcode == 42
""",
}


@pytest.mark.parametrize("program", list(PROGRAMS))
def test_processes_start_whatever_happens_to_the_server(program):
    outcome = in_own_process("-c", PREPARED + PROGRAMS[program])
    assert outcome.code == 0, outcome.err
