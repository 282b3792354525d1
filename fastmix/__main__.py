"The command `fastmix`, also as `python -m fastmix`: it can be stopped before its modules are there"
import os
import signal
from contextlib import contextmanager


@contextmanager
def ends_at_once():
    "Ctrl-C inside ends this process. For imports: code in C may swallow a `KeyboardInterrupt`, and nothing has begun by then"
    def stop(*_):
        os.write(2, b'\nfastmix: stopped; nothing had begun\n')
        os._exit(130)
    before = signal.getsignal(signal.SIGINT)
    heard = before is signal.default_int_handler
    if heard: signal.signal(signal.SIGINT, stop)
    try: yield
    finally:
        if heard: signal.signal(signal.SIGINT, before)


def main():
    with ends_at_once(): from fastmix.compare.cli import main
    main()


if __name__ == '__main__': main()
