"""A bulk run that is killed: `python -m tests.cluster.bulk.victim FOLDER K...` runs FOLDER/K and dies at its K-th rename.

Everything that lasts (a shard, a bundle's file, a stage, a signature) comes to be by a rename, so this is every moment
between two of them.
"""

import os
import signal
import sys
from pathlib import Path

from recapture.engine.store import remote_path

from .rows import make_bulk


def die_at(count: int) -> None:
    """Replace the process's renames by ones that are counted; the `count`-th is its last."""
    done = 0

    def counted(rename):
        def call(*args, **more):
            nonlocal done
            rename(*args, **more)
            done += 1
            if done == count:
                os.kill(os.getpid(), signal.SIGKILL)

        return call

    remote_path.os.replace = counted(os.replace)
    os.rename = counted(os.rename)


def main(folder: Path, counts: list[int]) -> None:
    for count in counts:
        child = os.fork()
        if child == 0:
            die_at(count)
            make_bulk(folder / str(count), clips=2, paths=2).run()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(count, os.WTERMSIG(status) if os.WIFSIGNALED(status) else "ended")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
