"""The process and its machine: devices, the mesh, processes, signals, files.

Imports nothing: the program handles signals before it imports slow modules.
"""
