"""Metadata is in pyproject.toml; this file serves tools that still run setup.py."""

from setuptools import setup

setup()
