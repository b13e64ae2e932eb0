"""Leaves a zombie in its group, whose parent has moved to a group of its own and does not reap it."""

import os
import time

if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)
    os.setpgid(0, 0)
    time.sleep(300)
time.sleep(0.2)  # the zombie is one
print('{"type":"ready"}', flush=True)
time.sleep(300)
