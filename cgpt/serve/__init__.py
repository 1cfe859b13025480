"""The HTTP server of `cgpt serve`, as clients of OpenAI's API expect it, over cgpt.engine.

app.py puts it together; guard.py lets requests in; body.py reads them, within limits.py; completions.py answers them,
logprobs.py with probabilities, stream.py piece by piece, errors.py where that fails; models.py, metrics.py and page.py
are the smaller endpoints; protocol.py and server.py are uvicorn's side. Needs pip install 'cgpt[serve]'.
"""
