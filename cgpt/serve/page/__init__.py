"""The page at /: assets.py serves the files of web/ as they are, markdown.py renders what its messages hold."""
