"""The script of the random kills: logs a known series of everything, and keeps a record of its own on disk.

Runs until `$RECORDER_DIR/stop` exists. What it did stands in `$RECORDER_DIR/record`, one step a line, and is
written after the step. Standard library and SDK only.
"""

import os
import time
from pathlib import Path

import stellwerk

folder = Path(os.environ["RECORDER_DIR"])
run = stellwerk.current_run()
Path("logs").mkdir()
step = 0
with (
    (folder / "record").open("w", buffering=1) as record,
    Path("logs/train.log").open("w", buffering=1) as train,
    (run.outputs / "growing.txt").open("w", buffering=1) as growing,
):
    while not (folder / "stop").exists():
        run.log_metrics({"series": step * 0.5, "twice": step}, step=step)
        run.log_row("table", step=step, square=step * step)
        print(f"step {step}\r\x1b[1mpart\x1b[0m", flush=True)
        train.write(f"trained {step}\n")
        growing.write(f"grown {step}\n")
        if step % 50 == 0:
            # Settled soon, so that it travels while the run goes on.
            (run.outputs / f"part-{step}.txt").write_text(f"part {step}\n")
        record.write(f"{step}\n")
        step += 1
        time.sleep(0.01)
