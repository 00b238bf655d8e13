"""Importers: one file a format, told by content; `load` makes a layer of what they find."""
