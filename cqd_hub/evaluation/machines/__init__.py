"""Machines for agents: a root file system of our own making, in bubblewrap or in Docker."""
