"""Taking dead channels out of a network: `speedup`."""

from .report import KeptChannels, ShrunkLayer, SpeedupReport
from .speedup import SpeedupError, speedup, speedup_with_report

__all__ = ["KeptChannels", "ShrunkLayer", "SpeedupError", "SpeedupReport", "speedup", "speedup_with_report"]
