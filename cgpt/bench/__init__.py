"""Measuring a model beside what the machine could do: `cgpt bench`, and what the scripts of bench/ are made of.

costs.py says what a call of a kernel must read and calculate, trace.py adds that up over the calls of a step;
workload.py is what is run, operands.py what single kernels are run on, noise.py tells whether anything disturbed it,
rows.py turns it into figures, session.py does all that for a list of cases; report.py and plot.py show it;
checkpoints.py finds or makes the model.
"""
