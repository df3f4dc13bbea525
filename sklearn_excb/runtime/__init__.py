"""Devices, processes, threads, random numbers and signals."""
