"The command `fastmix`, as `python -m fastmix`"
from fastmix.compare.cli import main

if __name__ == '__main__': main()
