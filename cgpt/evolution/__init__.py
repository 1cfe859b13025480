"""The steps from GPT-2 to gpt-oss, each run both ways on this machine: `cgpt evolution`.

setting.py holds the shapes and the operands; steps_*.py say what is claimed of each step, what is run against what and
what is counted, steps.py lists them; measure.py times two ways in turn, verdict.py says what follows from the times;
session.py does all that and makes one dictionary of it; report.py shows it on a terminal, page.py, charts.py,
report.html and report.css in a browser.
"""
