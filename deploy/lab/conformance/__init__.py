"""What the bus does, row by row: the same rows on Linux's mdev core and on the simulated kernel.

rows.py         the rows: data, in the words of `vocabulary.py`
subject.py      what a row is played on: a bus, and what moves the kernel behind it
sysfs.py        … in a guest, with the sample drivers mtty, mdpy and mbochs
simulated.py    … on a simulated host
orders.py       the agent's workers, on either
document.py     docs/kernel.md

python -m deploy.lab.conformance sysfs | simulated | document
"""
