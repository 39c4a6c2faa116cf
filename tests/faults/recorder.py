"""The training of the fault tests: logs a known series, and keeps a record of its own on disk.

Runs until `$RECORDER_DIR/stop` exists. Standard library and SDK only.
"""

import os
import time
from pathlib import Path

import stellwerk

folder = Path(os.environ["RECORDER_DIR"])
run = stellwerk.current_run()
run.outputs.mkdir(exist_ok=True)
step = 0
with (folder / "record").open("w", buffering=1) as record, (run.outputs / "record.txt").open("w") as output:
    while not (folder / "stop").exists():
        value = step * 0.5
        run.log_metrics({"series": value, "twice": value * 2}, step=step)
        line = f"step {step} value {value}"
        print(line, flush=True)
        record.write(line + "\n")
        output.write(line + "\n")
        step += 1
        time.sleep(0.01)
