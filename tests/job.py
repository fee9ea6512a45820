"""A training as a user starts it, in one process or several."""

import socket
import subprocess
import time

from forked import Process
from program import MAIN, PATIENCE, SMOKE, changed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Job:
    """A training in one or more processes."""

    def __init__(self, workdir, count, before="", **fields):
        workdir.parent.mkdir(parents=True, exist_ok=True)
        fields |= {"tensorboard": "false"}
        port = free_port()
        self.logs, self.processes = [], []
        for number in range(count):
            arguments = [f"--config.{k}={v}" for k, v in fields.items()]
            if count > 1:
                arguments += [
                    f"--coordinator_address=127.0.0.1:{port}",
                    f"--num_processes={count}",
                    f"--process_id={number}",
                ]
            log = workdir.with_name(f"{workdir.name}.{number}.{time.monotonic()}.log")
            self.logs.append(log)
            with log.open("w") as file:
                self.processes.append(
                    Process(
                        [MAIN, SMOKE, f"--workdir={workdir}", *arguments],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=changed({}),
                        before=before,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            process.kill()  # JAX swallows SIGTERM
            process.wait()

    def wait(self, number=0, seconds=PATIENCE) -> int:
        return self.processes[number].wait(seconds)

    def log(self, number=0) -> str:
        return self.logs[number].read_text()

    def wait_for_checkpoint(self, workdir):
        deadline = time.monotonic() + PATIENCE
        while not any((workdir / "checkpoints").glob("[0-9]*[0-9]")):
            assert self.processes[0].poll() is None, self.log()
            assert time.monotonic() < deadline
            time.sleep(0.05)
