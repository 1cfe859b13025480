"""Batches: many requests in a file, in OpenAI's format, each answered once, over the endpoints of cgpt.serve.

From top to bottom: run.py puts it together; source.py reads the requests and knows which are answered, output.py writes
the answers; runner.py says what answers requests, and local.py is that in this process. request.py is the format of a
line and of its answer, progress.py counts. Needs the extra [serve].
"""
