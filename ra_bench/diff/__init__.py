"""Two result folders of `compare`, row by row: what changed, how sure that is, and gates for it.

sides.py      a result folder → its newest rows
pairs.py      the rows of both that belong together, and those that do not
quantities.py what can be compared: its samples, its unit, which way is better
changes.py    paired differences with their intervals
gates.py      `mass_total<-0.01,p50>+20%`: which changes fall
table.py      what is printed
"""
