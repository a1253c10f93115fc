"""Trains delta-mem adapters for a frozen model; imports torch only in the modules that compute."""
