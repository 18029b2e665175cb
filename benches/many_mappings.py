"""Children with very many mappings each; says "ready" and waits to be killed."""

import ctypes
import mmap
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
MAPPINGS = 60000


def crowd():
    # Neighbours with different protections, which the kernel cannot merge.
    protections = (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return [mmap.mmap(-1, mmap.PAGESIZE, flags, protections[n % 2]) for n in range(MAPPINGS)]


libc = ctypes.CDLL(None)
for _ in range(int(sys.argv[1])):
    done, tell = os.pipe()
    if os.fork() == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        kept = crowd()
        os.close(done)
        os.write(tell, b"x")
        os.close(tell)
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, 1)
        while True:
            signal.pause()
    os.close(tell)
    assert os.read(done, 1) == b"x"
    os.close(done)

print("ready", flush=True)
null = os.open("/dev/null", os.O_WRONLY)
os.dup2(null, 1)
while True:
    signal.pause()
