"The command `fastmix`, also as `python -m fastmix`: it can be stopped before its modules are there"
import os
import signal
import threading
from contextlib import contextmanager


@contextmanager
def answered(answer):
    "Ctrl-C inside calls `answer`, in the main thread and where nobody else has said what it does"
    before, here = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    ours = here and before is signal.default_int_handler
    if ours: signal.signal(signal.SIGINT, answer)
    try: yield
    finally:
        if ours: signal.signal(signal.SIGINT, before)


def ends_at_once():
    "Ctrl-C inside ends this process. For imports: code in C may swallow a `KeyboardInterrupt`, and nothing has begun by then"
    def stop(*_):
        os.write(2, b'\nfastmix: stopped; nothing had begun\n')
        os._exit(130)
    return answered(stop)


def main():
    with ends_at_once(): from fastmix.compare.cli import main
    main()


if __name__ == '__main__': main()
