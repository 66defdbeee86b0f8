"""Taking dead channels out of a network: `speedup`."""

from .report import KeptChannels, ShrunkLayer, SpeedupReport
from .speedup import speedup, speedup_with_report

__all__ = ["KeptChannels", "ShrunkLayer", "SpeedupReport", "speedup", "speedup_with_report"]
