"""What of the extension talks to 3D Slicer: prompts in segments, the worker, the Segment Editor effect, the panels.

Nothing is imported here: all but the effect, its panel, the keyboard and the settings can be used where there are no
widgets.
"""
