"""Spanwise: distilling a tool-using teacher into a small student."""
