"""CutPaste: what tells good images from ones with a piece pasted tells them from real defects as well."""

from mvtec_lab.models.anomaly.cutpaste.detector import Detector

__all__ = ["Detector"]
