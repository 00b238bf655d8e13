"""Remedies: one file each."""

from throughtime.remedies.remedy import Remedy, registered, treating

__all__ = ["Remedy", "registered", "treating"]
