"The command `fastmix`, also as `python -m fastmix`: it can be stopped before its modules are there"
import sys


def main():
    try:
        from fastmix.compare.cli import main
        main()
    except KeyboardInterrupt:
        print('\nfastmix: stopped; nothing had begun', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__': main()
