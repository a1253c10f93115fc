"""python load_adapters.py MODEL: loads every adapter file named on stdin and, if it loads, runs tokens through it.

Prints one line for each: "loaded" or the error. Runs apart from the tests, so that a crash ends only this.
"""

from __future__ import annotations

import sys
from pathlib import Path

from deltamem_cli.bindings import NativeError
from deltamem_cli.engine import Engine, EngineError, EngineOptions, Model, Seat

if __name__ == "__main__":
    with Model(Path(sys.argv[1])) as model:
        for line in sys.stdin:
            try:
                with Engine(model, Path(line.rstrip("\n")), EngineOptions(ctx_size=256, threads=1)) as engine:
                    seat = Seat(engine)
                    seat.feed([1, 2, 3, 4], spans=[0, 0, 1, -1])
                    seat.feed([5])
                    seat.state()
                print("loaded", flush=True)
            except (NativeError, EngineError) as error:
                print(error, flush=True)
