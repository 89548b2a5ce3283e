"""The HTTP API around the engine's session, and the page that draws with it.

Nothing heavy is imported here: the torch-free client uses ``packing`` and ``nrrd`` of this folder.
"""
