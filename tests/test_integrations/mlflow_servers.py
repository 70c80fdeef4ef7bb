"""Run as a program: imports MLflow's server once, and forks one for each line that asks for it.

MLflow's start costs four seconds of imports; a fork of a process that has them costs nothing, so that a test can kill
servers and start them again. A line is JSON, `["start", SOCKET, DATABASE, ARTIFACTS]` or `["kill", PID]`; the answer is
a line with the process id. The end of the input kills all.
"""

from __future__ import annotations

import json
import os
import signal
import sys

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"  # as `mlflow server --artifacts-destination`


def serve(socket: str, database: str, artifacts: str) -> None:
    import uvicorn
    from mlflow.server.fastapi_app import app

    os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{database}"
    os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = artifacts
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
    uvicorn.run(app, uds=socket, log_level="error")


def main() -> None:
    import mlflow.server.fastapi_app
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - what the first request would import

    alive: set[int] = set()
    print("ready", flush=True)
    for line in sys.stdin:
        what, *rest = json.loads(line)
        if what == "start":
            pid = os.fork()
            if not pid:
                sys.stdin.close()
                os.close(1)
                serve(*rest)
                os._exit(0)
            alive.add(pid)
        else:
            (pid,) = rest
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            alive.remove(pid)
        print(pid, flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
