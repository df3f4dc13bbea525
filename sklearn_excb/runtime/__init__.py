"""Devices, processes, threads, random draws and signals."""
