"""Dumps through pycriu on command: one line in, the time that it took (in seconds) out.

Stays alive between commands, so that the start of Python is in no figure.
"""

import os
import sys
import time

import pycriu


def client(program):
    criu = pycriu.criu()
    criu.use_binary(program)
    return criu


def version(program):
    criu = client(program)
    request = pycriu.rpc.criu_req()
    request.type = pycriu.rpc.VERSION
    # pycriu has no method for this request.
    answer = criu._send_req_and_recv_resp(request)
    assert answer.success and answer.version.major_number > 0


def dump(program, pid, directory):
    criu = client(program)
    images = os.open(directory, os.O_DIRECTORY)
    try:
        criu.opts.pid = int(pid)
        criu.opts.images_dir_fd = images
        criu.opts.leave_running = True
        criu.opts.log_level = 2
        criu.opts.log_file = "dump.log"
        criu.dump()
    finally:
        os.close(images)


commands = {"version": version, "dump": dump}
for line in sys.stdin:
    command, *arguments = line.split()
    started = time.perf_counter()
    commands[command](*arguments)
    print(time.perf_counter() - started, flush=True)
