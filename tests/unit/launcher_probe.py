"""Starts a rank as the launcher does, prints its process id, and waits."""

import sys
import time

from synfundus.launch import processes

rank = vars(processes)["subprocess"].Popen(
    [sys.executable, "-m", "synfundus", "watch", "--run-dir", "/"], start_new_session=True
)
print(rank.pid, flush=True)
time.sleep(60)
