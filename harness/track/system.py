"""What the machine did while a run went on: MLflow's own monitor, on one run, without MLflow's global state."""

from __future__ import annotations

from typing import Any


class Monitor:
    """Writes `system/…` metrics (CPU, memory, disk, network; GPUs with `nvidia-ml-py`) of this machine to a run.

    One sample every 10 s; $MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise. A store that does not take them ends
    the monitor and nothing else. Without `psutil` nothing is written.
    """

    def __init__(self, uri: str, run_id: str, *, again: bool) -> None:
        self._monitor: Any = None
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(run_id, resume_logging=again, tracking_uri=uri)
        except ImportError:
            return
        self._monitor.start()

    def finish(self) -> None:
        """Stop, with what was sampled written. Must come before the run is ended."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
