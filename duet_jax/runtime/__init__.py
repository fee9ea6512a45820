"""The process and its machine: devices, the mesh, processes, signals, files.

Empty on purpose: the program listens to signals before it imports what takes seconds.
"""
